"""Run folders: what is written, what is refused, and damage that must not go unseen."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from relaxprune.models import saved_model
from relaxprune.models.layers import apply_masks, find_layers
from relaxprune.models.loading import LoadedModel
from relaxprune.models.saved_model import verify_saved_model
from relaxprune.options.objective_options import ObjectiveOptions
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.block_record import BlockRecord
from relaxprune.pruning.layer_report import LayerReport
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.runs.fingerprint import Fingerprint, weights_sha256
from relaxprune.runs.mask_file import read_masks
from relaxprune.runs.run_folder import RunFolder
from relaxprune.runs.run_record import RunNotes, read_record

from .. import reports
from ..tiny_llama import CHAT_TEMPLATE, save_tiny_llama

NOTES = RunNotes(command="relaxprune prune tiny --sparsity 0.5 --out out", base_model="someone/tiny", license="mit")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("source"))


@pytest.fixture
def model(source: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(source)


def fingerprint(seed: int = 0, calibration: str = "aa") -> Fingerprint:
    return Fingerprint(
        model={"source": "someone/tiny", "commit": "c0ffee", "weights_sha256": "ab"},
        calibration={"source": "builtin", "sha256": calibration, "windows": 4, "length": 16},
        settings={"solver": "fw", "polytope": {"sparsity": 0.5}, "seed": seed, "include": ("a", "b")},
        software={"relaxprune": "0.1.0"},
    )


def records(model: LlamaForCausalLM) -> dict[int, BlockRecord]:
    """Random masks and invented numbers for every block."""
    found: dict[int, BlockRecord] = {}
    generator = torch.Generator().manual_seed(5)
    for layer in find_layers(model)[0]:
        if ".layers." not in layer.name:
            continue
        block = int(layer.name.split(".")[2])
        mask = torch.rand(layer.shape, generator=generator) < 0.5
        record = found.setdefault(block, BlockRecord({}, []))
        record.masks[layer.parameter] = mask
        record.layers.append(report_of(layer.name, block, mask))
    return found


def report_of(name: str, block: int, mask: torch.Tensor) -> LayerReport:
    sparsity = 1 - float(mask.double().mean())
    return reports.layer_report(name, block=block, rows=mask.shape[0], cols=mask.shape[1], sparsity=sparsity)


def prune_report(done: dict[int, BlockRecord]) -> PruneReport:
    masks = {name: mask for record in done.values() for name, mask in record.masks.items()}
    layers = [layer for record in done.values() for layer in record.layers]
    return reports.prune_report(*layers, polytope={"kind": "ksparse"}, masks=masks)


def loaded(model: LlamaForCausalLM, tokenizer: Any = None) -> LoadedModel:
    return LoadedModel(model, tokenizer, "someone/tiny", None, {})


def run(path: Path, source: Path, model: LlamaForCausalLM) -> RunFolder:
    folder = RunFolder.open(path, loaded(model, AutoTokenizer.from_pretrained(source)), fingerprint())
    done = records(model)
    for block, record in done.items():
        folder.save(block, record)
    apply_masks(model, prune_report(done).masks)
    folder.finish(model, prune_report(done), NOTES)
    return folder


def test_a_finished_folder(tmp_path: Path, source: Path, model: LlamaForCausalLM) -> None:
    out = tmp_path / "out"
    assert run(out, source, model).finished
    dense = AutoModelForCausalLM.from_pretrained(source).state_dict()
    pruned = AutoModelForCausalLM.from_pretrained(out)
    masks = read_masks(out / "masks.safetensors")
    assert len(masks) == 21
    for name, weight in pruned.state_dict().items():
        mask = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(weight[mask].view(torch.int32), dense[name][mask].view(torch.int32))
        assert not weight[~mask].view(torch.int32).any(), "pruned weights are +0.0"
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in set(file.keys()), "a tied weight is stored once"
    assert AutoTokenizer.from_pretrained(out).chat_template == CHAT_TEMPLATE
    assert not (out / ".relaxprune").exists()


def test_record_and_card(tmp_path: Path, source: Path, model: LlamaForCausalLM) -> None:
    out = tmp_path / "out"
    run(out, source, model)
    record = read_record(out / "relaxprune.json")
    assert record["schema_version"] == 1
    masks = prune_report(records(model)).masks.values()
    assert record["verification"]["pruned_weights"] == sum(int((~mask).sum()) for mask in masks)
    assert record["verification"]["tied_groups"] == 1
    assert set(record["files"]) >= {
        "model.safetensors",
        "masks.safetensors",
        "config.json",
        "README.md",
        "tokenizer.json",
    }
    assert len(record["report"]["layers"]) == 21
    card = (out / "README.md").read_text()
    assert "\nbase_model: someone/tiny\nlicense: mit\n" in card
    assert NOTES.command in card and "c0ffee" in card


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX systems")
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, source: Path, model: LlamaForCausalLM) -> None:
    old = os.umask(0o027)
    try:
        run(tmp_path / "out", source, model)
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640}, modes


def test_settings_are_saved_before_pruning(tmp_path: Path, source: Path, model: LlamaForCausalLM) -> None:
    RunFolder.open(tmp_path / "out", loaded(model, AutoTokenizer.from_pretrained(source)), fingerprint())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", ".relaxprune"} <= names


def test_unsavable_settings_leave_nothing(tmp_path: Path, model: LlamaForCausalLM) -> None:
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = False
    with pytest.raises(RelaxPruneError, match="cannot be saved"):
        RunFolder.open(tmp_path / "out", loaded(model), fingerprint())
    assert not (tmp_path / "out").exists()


def test_abandon_removes_only_its_own_files(tmp_path: Path, model: LlamaForCausalLM) -> None:
    out = tmp_path / "out"
    out.mkdir()
    RunFolder.open(out, loaded(model), fingerprint()).abandon()
    assert out.is_dir() and not any(out.iterdir()), "a folder that was there before stays"
    folder = RunFolder.open(out, loaded(model), fingerprint())
    folder.save(0, records(model)[0])
    folder.abandon()
    assert folder.solved_blocks == [0], "finished blocks are never thrown away"


def test_abandon_removes_every_folder_that_it_made(tmp_path: Path, source: Path, model: LlamaForCausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = {"default": "a", "other": "b"}  # saved in a folder of its own
    folder = RunFolder.open(tmp_path / "a/b/out", loaded(model, tokenizer), fingerprint())
    assert any(path.is_dir() and path.name != ".relaxprune" for path in folder.path.iterdir())
    folder.abandon()
    assert not any(tmp_path.iterdir())
    folder = RunFolder.open(tmp_path / "a/b/out", loaded(model, tokenizer), fingerprint())
    (tmp_path / "a/mine").write_text("x")
    folder.abandon()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a", "mine"]


def test_progress_that_a_kill_left_in_a_finished_run_is_removed(
    tmp_path: Path, source: Path, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **more: path.name == ".relaxprune" or remove(path, **more))
        run(tmp_path / "out", source, model)
    assert (tmp_path / "out/.relaxprune/blocks").is_dir()
    again = RunFolder.open(tmp_path / "out", loaded(model), fingerprint(), resume=True)
    assert again.finished and again.verify_files() and not (tmp_path / "out/.relaxprune").exists()


def test_runs_of_before_objectives_go_on_as_the_gram_alone(tmp_path: Path, model: LlamaForCausalLM) -> None:
    older = replace(fingerprint(), settings=fingerprint().settings | {"permute": True})
    RunFolder.open(tmp_path / "out", loaded(model), older).save(0, records(model)[0])
    now = {"objective": asdict(ObjectiveOptions()), "permute_by": "saliency"}
    newer = replace(older, settings={**older.settings, **now})
    assert RunFolder.open(tmp_path / "out", loaded(model), newer, resume=True).solved_blocks == [0]
    for other, named in (
        ({"objective": asdict(ObjectiveOptions("rows"))}, 'objective.kind was "gram" and is now "rows"'),
        ({"permute_by": "error"}, 'permute_by was "saliency" and is now "error"'),
    ):
        with pytest.raises(RelaxPruneError, match=named):
            RunFolder.open(
                tmp_path / "out", loaded(model), replace(newer, settings={**newer.settings, **other}), resume=True
            )


def test_occupied_folders_are_refused(tmp_path: Path, model: LlamaForCausalLM) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RelaxPruneError, match="is a file"):
        RunFolder.refuse_occupied(tmp_path / "file")
    with pytest.raises(RelaxPruneError, match="is not empty; name a new one"):
        RunFolder.refuse_occupied(tmp_path)
    with pytest.raises(RelaxPruneError, match="holds no relaxprune run"):
        RunFolder.refuse_occupied(tmp_path, resume=True)
    assert (tmp_path / "file").read_text() == "x"


def test_resume_refuses_what_differs(tmp_path: Path, model: LlamaForCausalLM) -> None:
    RunFolder.open(tmp_path / "out", loaded(model), fingerprint())
    RunFolder.open(tmp_path / "out", loaded(model), fingerprint(), resume=True)
    expected = r"calibration\.sha256 was \"aa\" and is now \"bb\"; settings\.seed was 0 and is now 1"
    with pytest.raises(RelaxPruneError, match=expected):
        RunFolder.open(tmp_path / "out", loaded(model), fingerprint(seed=1, calibration="bb"), resume=True)


def test_blocks_round_trip(tmp_path: Path, model: LlamaForCausalLM) -> None:
    folder = RunFolder.open(tmp_path / "out", loaded(model), fingerprint())
    done = records(model)
    assert folder.load(0) is None
    for block, record in done.items():
        folder.save(block, record)
    again = RunFolder.open(tmp_path / "out", loaded(model), fingerprint(), resume=True)
    assert again.solved_blocks == [0, 1, 2]
    for block, record in done.items():
        back = again.load(block)
        assert back is not None and back.layers == record.layers
        assert all(torch.equal(back.masks[name], mask) for name, mask in record.masks.items())


def test_a_deleted_block_is_solved_again_and_so_are_those_after_it(tmp_path: Path, model: LlamaForCausalLM) -> None:
    folder = RunFolder.open(tmp_path / "out", loaded(model), fingerprint())
    for block, record in records(model).items():
        folder.save(block, record)
    (tmp_path / "out/.relaxprune/blocks/00001.safetensors").unlink()
    again = RunFolder.open(tmp_path / "out", loaded(model), fingerprint(), resume=True)
    assert again.load(0) is not None
    assert again.load(1) is None
    assert again.load(2) is None, "block 2 was solved on the outputs of a block 1 that is gone"


def test_what_was_executed_before_a_deleted_block_is_kept(tmp_path: Path, model: LlamaForCausalLM) -> None:
    folder = RunFolder.open(tmp_path / "out", loaded(model), fingerprint())
    for block, record in records(model).items():
        folder.save(block, record)
    (tmp_path / "out/.relaxprune/blocks/00001.safetensors").unlink()
    again = RunFolder.open(tmp_path / "out", loaded(model), fingerprint(), resume=True)
    assert again.load(2) is not None, "a layer before the blocks has a later index and is executed first"
    assert again.load(1) is None
    assert again.solved_blocks == [2], "block 0 is executed after block 1 here"


def test_a_damaged_or_exchanged_block_is_refused(tmp_path: Path, model: LlamaForCausalLM) -> None:
    folder = RunFolder.open(tmp_path / "out", loaded(model), fingerprint())
    for block, record in records(model).items():
        folder.save(block, record)
    blocks = tmp_path / "out/.relaxprune/blocks"
    flip(blocks / "00001.safetensors", -3)
    with pytest.raises(RelaxPruneError, match=r"00001\.safetensors' is damaged"):
        folder.load(1)
    (blocks / "00002.safetensors").write_bytes((blocks / "00000.safetensors").read_bytes())
    with pytest.raises(RelaxPruneError, match="not the record of block 2"):
        folder.load(2)


def test_a_finished_run_with_a_deleted_shard_is_not_called_finished(
    tmp_path: Path, source: Path, model: LlamaForCausalLM
) -> None:
    out = tmp_path / "out"
    folder = run(out, source, model)
    assert folder.verify_files() == len(read_record(out / "relaxprune.json")["files"])
    flip(out / "masks.safetensors", -1)
    with pytest.raises(RelaxPruneError, match=r"masks\.safetensors' is missing or is not"):
        folder.verify_files()
    flip(out / "masks.safetensors", -1)
    (out / "model.safetensors").unlink()
    with pytest.raises(RelaxPruneError, match=r"model\.safetensors' is missing or is not"):
        folder.verify_files()


@pytest.mark.parametrize("value", [-0.0, 1e-30], ids=["minus zero", "tiny"])
def test_zero_check_sees_a_pruned_weight_that_is_not_plus_zero(
    tmp_path: Path, source: Path, model: LlamaForCausalLM, value: float
) -> None:
    run(tmp_path / "out", source, model)
    masks = read_masks(tmp_path / "out/masks.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    row, col = (~masks[name]).nonzero()[0].tolist()
    alter(tmp_path / "out", name, row, col, value)
    with torch.no_grad():
        model.get_parameter(name)[row, col] = value
    with pytest.raises(RelaxPruneError, match=r"up_proj\.weight' has 1 weights .* not \+0\.0"):
        verify_saved_model(tmp_path / "out", model, masks)


def test_reload_sees_a_kept_weight_that_changed(tmp_path: Path, source: Path, model: LlamaForCausalLM) -> None:
    run(tmp_path / "out", source, model)
    masks = read_masks(tmp_path / "out/masks.safetensors")
    assert verify_saved_model(tmp_path / "out", model, masks).tensors > 21
    name = "model.layers.0.self_attn.q_proj.weight"
    row, col = masks[name].nonzero()[0].tolist()
    alter(tmp_path / "out", name, row, col, model.get_parameter(name)[row, col].item() * (1 + 2e-7))
    with pytest.raises(RelaxPruneError, match=r"q_proj\.weight' is not what was written"):
        verify_saved_model(tmp_path / "out", model, masks)


def test_finish_does_not_declare_a_wrong_model_finished(
    tmp_path: Path, source: Path, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_model, "_same_bits", lambda first, second: False)
    with pytest.raises(RelaxPruneError, match="is not what was written"):
        run(tmp_path / "out", source, model)
    assert not (tmp_path / "out/relaxprune.json").exists()


def test_damaged_and_newer_records(tmp_path: Path) -> None:
    path = tmp_path / "relaxprune.json"
    for text in ("{", "[]", "{}", '"x"'):
        path.write_text(text)
        with pytest.raises(RelaxPruneError, match="damaged"):
            read_record(path)
    path.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(RelaxPruneError, match="schema version 99"):
        read_record(path)


def test_weights_hash_sees_one_bit(model: LlamaForCausalLM) -> None:
    before = weights_sha256(model)
    assert weights_sha256(model) == before
    bits = model.model.norm.weight.data.view(torch.int32)
    bits[3] ^= 1
    assert weights_sha256(model) != before


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def alter(folder: Path, name: str, row: int, col: int, value: float) -> None:
    """Change one weight on disk."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
        metadata = file.metadata()
    tensors[name][row, col] = value
    save_file(tensors, folder / "model.safetensors", metadata)
