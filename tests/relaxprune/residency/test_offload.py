"""A model whose blocks travel is pruned to the same bits as one that is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from relaxprune import PruneOptions, PruneReport, RelaxPruneError, plan_model, prune_model
from relaxprune.inputs import replay_proof
from relaxprune.models import LoadOptions, load_model
from relaxprune.residency import Residency
from relaxprune.residency.block_store import BlockStore
from relaxprune.residency.store import store_of
from relaxprune.support.tensor_bits import same_bits

from ..recorders import RunMemory
from ..tiny_llama import save_tiny_llama

FEW = 8
KINDS: dict[str, dict[str, Any]] = {
    "masks": {"sparsity": 0.5, "options": PruneOptions(max_iterations=FEW)},
    "refit": {"sparsity": 0.5, "options": PruneOptions(weights="refit", max_iterations=FEW)},
    "correct": {"sparsity": 0.5, "options": PruneOptions(weights="refit", correct=1.0, max_iterations=FEW)},
    "tune": {"sparsity": 0.5, "options": PruneOptions(tune=2, max_iterations=FEW)},
    "owl": {"sparsity": 0.5, "allocation": "owl", "options": PruneOptions(max_iterations=FEW)},
    "model": {"sparsity": 0.5, "allocation": "model", "options": PruneOptions(max_iterations=FEW)},
    "certify": {"sparsity": 0.5, "options": PruneOptions(certify="diagonal", max_iterations=FEW)},
    "permute": {"pattern": "2:4", "options": PruneOptions(permute=True, permute_by="saliency", max_iterations=FEW)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in bfloat16, untied, in several shards."""
    whole = save_tiny_llama(tmp_path_factory.mktemp("source") / "tiny", dtype=torch.bfloat16, tied=False)
    load_model(str(whole)).model.save_pretrained(whole, max_shard_size="20KB")
    assert len(list(whole.glob("model-*.safetensors"))) > 2
    return whole


def batches(count: int = 4) -> list[Tensor]:
    """Return token windows, two at a time; the last batch is shorter."""
    generator = torch.Generator().manual_seed(1)
    found = [torch.randint(2, 120, (2, 32), generator=generator) for _ in range(count)]
    return [*found[:-1], found[-1][:, :20]]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's tensors as they are now."""
    store = store_of(model)
    return {name: store.values(tensor).clone() for name, tensor in model.state_dict(keep_vars=True).items()}


def pruned(folder: Path, offload: str | None, recorder: Any = None, **words: Any) -> tuple[PruneReport, nn.Module]:
    """Load the model in one way and prune it."""
    model = load_model(str(folder), LoadOptions(offload=offload)).model
    return prune_model(model, batches(), recorder=recorder, **words), model


def assert_same(one: tuple[PruneReport, nn.Module], other: tuple[PruneReport, nn.Module]) -> None:
    """Compare two results bit by bit."""
    reports = [found[0] for found in (one, other)]
    assert set(reports[0].masks) == set(reports[1].masks)
    assert all(torch.equal(mask, reports[1].masks[name]) for name, mask in reports[0].masks.items())
    assert all(same_bits(weight, reports[1].weights[name]) for name, weight in reports[0].weights.items())
    assert [layer.loss for layer in reports[0].layers] == [layer.loss for layer in reports[1].layers]
    assert reports[0].propagation == reports[1].propagation
    before, after = (tensors(found[1]) for found in (one, other))
    assert [name for name in before if not same_bits(before[name], after[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_travelling_changes_no_bit(folder: Path, kind: str) -> None:
    whole = pruned(folder, None, **KINDS[kind])
    assert_same(whole, pruned(folder, "disk", **KINDS[kind]))
    assert_same(whole, pruned(folder, "disk", RunMemory(), **KINDS[kind]))


@pytest.mark.parametrize("states", ["device", "cpu", "disk"])
@pytest.mark.parametrize("offload", [None, "disk"])
def test_hidden_states_change_no_bit_wherever_they_live(
    folder: Path, tmp_path: Path, offload: str | None, states: str
) -> None:
    words = KINDS["correct"]
    model = load_model(str(folder), LoadOptions(offload=offload)).model
    other = tmp_path / "states" / "0" / "not of this run"
    other.mkdir(parents=True)
    residency = Residency(offload or "device", states, folder=tmp_path / "states")
    plan = plan_model(model, residency=residency, **words)
    assert_same(pruned(folder, None, **words), (prune_model(model, batches(), plan=plan), model))
    assert [*(tmp_path / "states").rglob("*")] == [other.parent, other]


def test_models_that_are_run_as_a_whole_travel_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_proof, "_why_not", lambda *_arguments: "for a test")
    whole = pruned(folder, None, **KINDS["masks"])
    assert whole[0].propagation == "rerun: for a test"
    assert_same(whole, pruned(folder, "disk", **KINDS["masks"]))


@pytest.mark.parametrize("kind", ["masks", "model"])
def test_at_most_two_blocks_are_there(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    seen: list[int] = []
    model = load_model(str(folder), LoadOptions(offload="disk")).model
    store = store_of(model)
    assert isinstance(store, BlockStore)
    fill = store._fill

    def counting(index: int) -> None:
        fill(index)
        seen.append(len(store._here) + 1)

    monkeypatch.setattr(store, "_fill", counting)
    prune_model(model, batches(), **KINDS[kind])
    assert max(seen) == 1


def test_blocks_stay_where_there_is_room(folder: Path) -> None:
    model = load_model(str(folder), LoadOptions(offload="disk")).model
    store = store_of(model)
    assert isinstance(store, BlockStore)
    store.room_bytes = 2**30
    assert_same(pruned(folder, None, **KINDS["refit"]), (prune_model(model, batches(), **KINDS["refit"]), model))
    assert store.loads == 4  # three blocks, and what lies outside of them


def test_a_recorded_run_goes_on(folder: Path) -> None:
    words = KINDS["refit"]
    recorder = RunMemory()
    whole = pruned(folder, None, recorder, **words)
    del recorder.records[1], recorder.records[2]
    recorder.solved.clear()
    assert_same(whole, pruned(folder, "disk", recorder, **words))
    assert recorder.solved == [1, 2]


def test_what_travels_is_saved_whole(folder: Path, tmp_path: Path) -> None:
    whole, away = pruned(folder, None, **KINDS["masks"]), pruned(folder, "disk", **KINDS["masks"])
    state = away[1].state_dict()
    assert all(same_bits(tensor, state[name]) for name, tensor in whole[1].state_dict().items())
    away[1].save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").state_dict()
    assert all(same_bits(tensor, again[name]) for name, tensor in whole[1].state_dict().items())
    for convert in (away[1].double, lambda: away[1].to("meta")):
        with pytest.raises(RelaxPruneError, match="model must stay on its device and in its dtype"):
            convert()


def test_refining_is_refused(folder: Path) -> None:
    model = load_model(str(folder), LoadOptions(offload="disk")).model
    with pytest.raises(RelaxPruneError, match="refine moves the weights of all blocks together"):
        plan_model(model, sparsity=0.5, options=PruneOptions(refine=1))


def test_correcting_needs_blocks_that_are_replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_proof, "_why_not", lambda *_arguments: "for a test")
    with pytest.raises(RelaxPruneError, match="correct runs the whole dense model beside the pruned one"):
        pruned(folder, "disk", **KINDS["correct"])


def test_a_block_that_is_away_is_not_written_to(folder: Path) -> None:
    model = load_model(str(folder), LoadOptions(offload="disk")).model
    layer = plan_model(model, sparsity=0.5).weights[0]
    assert bool(layer.matrix().isfinite().all()), "reading one is fine"
    with pytest.raises(RelaxPruneError, match="only while its block is there"):
        layer.apply_mask(torch.ones(layer.shape, dtype=torch.bool))


def test_a_source_that_changes_is_noticed(folder: Path, tmp_path: Path) -> None:
    copy = save_tiny_llama(tmp_path / "tiny", dtype=torch.bfloat16)
    model = load_model(str(copy), LoadOptions(offload="disk")).model
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(RelaxPruneError, match="was changed since it was opened"):
        prune_model(model, batches(), sparsity=0.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"offload": "disc"}, "offload must be one of cpu, disk or None"),
        ({"offload": "cpu"}, "offload 'cpu' keeps blocks in memory beside an accelerator"),
    ],
)
def test_ways_to_travel_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RelaxPruneError, match=sentence):
        LoadOptions(**options)
