"""torch.ao.pruning: prepare, calibrate, step and squash_mask give the masks of ``solve``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError, solve
from relaxprune.adapters.torch_sparsifier import RelaxPruneSparsifier


@pytest.fixture
def model(generator: torch.Generator) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))


def test_pruned_saved_reloaded_and_equal_to_solve(model: nn.Sequential, tmp_path: Path, device: torch.device) -> None:
    model.to(device)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [torch.randn(3, 10, 16, device=device) for _ in range(4)]
    sparsifier = RelaxPruneSparsifier(sparsity=0.5, max_iterations=60)
    own = {"tensor_fqn": "2.weight", "sparsity": None, "pattern": "2:4", "solver": "wanda", "options": {}}
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, own])
    with torch.no_grad():
        for batch in batches:
            model(batch)
    sparsifier.step()
    assert list(sparsifier.figures) == ["0.weight", "2.weight"] and sparsifier.figures["0.weight"].tokens == 120
    sparsifier.squash_mask()
    assert type(model[0]) is nn.Linear and not model[0]._forward_pre_hooks
    inputs = torch.cat(batches).flatten(0, 1)
    hidden = nn.functional.linear(inputs, dense["0.weight"], dense["0.bias"]).relu()  # of the dense first layer
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    reloaded = load_file(tmp_path / "model.safetensors", device=str(device))
    for name, seen, polytope, arguments in [
        ("0.weight", inputs, KSparse(8), {"max_iterations": 60}),
        ("2.weight", hidden, NM(2, 4), {"solver": "wanda"}),
    ]:
        solution = solve(MaskProblem(dense[name], seen.T @ seen / len(seen), polytope), **arguments)
        assert torch.equal(reloaded[name], dense[name].masked_fill(~solution.mask, 0.0)), name
        assert not torch.signbit(reloaded[name][~solution.mask]).any(), "zeros are +0.0"
        assert sparsifier.figures[name].objective == pytest.approx(solution.objective, rel=1e-4)
        assert 0 <= sparsifier.figures[name].lower_bound <= sparsifier.figures[name].objective


def test_a_later_step_looks_at_later_passes(model: nn.Sequential) -> None:
    sparsifier = RelaxPruneSparsifier(pattern="2:4", solver="wanda")
    sparsifier.prepare(model)
    for scale in (1, 100):
        inputs = torch.randn(32, 16)
        inputs[:, :8] *= scale
        model(inputs)
        sparsifier.step()
        assert sparsifier.figures["0.weight"].tokens == 32
    with pytest.raises(RelaxPruneError, match=r"no token reached layer '0.weight'"):
        sparsifier.step()
    assert set(sparsifier.state_dict()["state"]) == {"0.weight", "2.weight"}
    sparsifier.squash_mask()
    assert int(model[0].weight.count_nonzero()) == 16 * 12 / 2


@pytest.mark.parametrize("failure", ["no token", "in a solve"])
def test_a_step_that_fails_changes_nothing_and_can_be_taken_again(
    model: nn.Sequential, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparsifier = RelaxPruneSparsifier(sparsity=0.5, solver="wanda")
    sparsifier.prepare(model)
    if failure == "no token":
        model[0](torch.randn(32, 16))
        with pytest.raises(RelaxPruneError, match=r"no token reached layer '2.weight'"):
            sparsifier.step()
        assert not sparsifier.figures
        model[2](torch.randn(32, 12))
    else:
        model(torch.randn(32, 16))
        with torch.no_grad():
            model[2].parametrizations.weight.original[0, 0] = torch.inf
        with pytest.raises(RelaxPruneError, match="weight holds NaN or Inf"):
            sparsifier.step()
        with torch.no_grad():
            model[2].parametrizations.weight.original[0, 0] = 1.0
    assert bool(model[0].parametrizations.weight[0].mask.all()), "nothing is written"
    sparsifier.step()
    assert [figures.tokens for figures in sparsifier.figures.values()] == [32, 32]
    sparsifier.squash_mask()
    assert int(model[0].weight.count_nonzero()) == 16 * 12 / 2


def test_one_layer_at_a_time_and_masks_that_are_held(model: nn.Sequential) -> None:
    sparsifier = RelaxPruneSparsifier(sparsity=0.5, solver="wanda")
    sparsifier.prepare(model)
    model(torch.randn(32, 16))
    sparsifier.enable_mask_update = False
    sparsifier.step()
    assert not sparsifier.figures
    sparsifier.update_mask(**sparsifier.groups[1])
    assert list(sparsifier.figures) == ["2.weight"] and int(model[2].weight.count_nonzero()) == 12 * 8 / 2


def test_what_is_out_of_turn_is_refused(model: nn.Sequential) -> None:
    sparsifier = RelaxPruneSparsifier(sparsity=0.5, solver="wanda")
    for call in (sparsifier.step, sparsifier.squash_mask):
        with pytest.raises(RelaxPruneError, match="call prepare first"):
            call()
    sparsifier.prepare(model)
    model(torch.randn(32, 16))
    sparsifier.step()
    sparsifier.squash_mask()
    for call in (sparsifier.step, sparsifier.squash_mask):
        with pytest.raises(RelaxPruneError, match="squashed already"):
            call()
    with pytest.raises(RelaxPruneError, match="prepare was called before"):
        sparsifier.prepare(model)


def test_a_convolution_and_a_model_with_a_head(tiny_llama: LlamaForCausalLM) -> None:
    convolutions = nn.Sequential(nn.Conv2d(4, 6, 2, padding=1))
    sparsifier = RelaxPruneSparsifier(pattern="2:4", solver="wanda")
    sparsifier.prepare(convolutions)
    convolutions(torch.randn(2, 4, 5, 5))
    sparsifier.step()
    sparsifier.squash_mask()
    assert convolutions[0].weight.flatten(1).reshape(6, 4, 4).count_nonzero(-1).eq(2).all()
    head = tiny_llama.lm_head.weight.clone()
    sparsifier = RelaxPruneSparsifier(sparsity=0.5, solver="wanda")
    sparsifier.prepare(tiny_llama)
    tiny_llama(torch.arange(20).reshape(2, 10))
    sparsifier.step()
    sparsifier.squash_mask()
    assert len(sparsifier.figures) == 14 and torch.equal(tiny_llama.lm_head.weight, head), "the head is left alone"


def test_refusals_come_before_the_model_is_touched(model: nn.Sequential) -> None:
    for arguments, expected in [
        ({}, "exactly one of sparsity"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "exactly one of sparsity"),
        ({"sparsity": 0.5, "solver": "fww"}, "did you mean 'fw'"),
        ({"sparsity": "0.5"}, r"must lie in \[0, 1\], got '0.5'"),
        ({"sparsity": 0.5, "bogus": 2}, "no option 'bogus'"),
        ({"sparsity": 0.5, "max_iterations": 0}, "max_iterations must be a whole number"),
        ({"sparsity": 0.5, "start": "wandaa"}, "did you mean 'wanda'"),
        ({"sparsity": 0.5, "polish": "swapp"}, "polish must be"),
        ({"sparsity": 0.5, "seed": -1}, "seed must be"),
        ({"sparsity": 0.5, "solver": "wanda", "max_iterations": 60}, "does not use"),
    ]:
        with pytest.raises(RelaxPruneError, match=expected):
            RelaxPruneSparsifier(**arguments)
    for config, expected in [
        ([{"tensor_fqn": "0.weights"}], "did you mean '0.weight'"),
        ([{}], "got None"),
        ([], "each once, got none"),
        ([{"tensor_fqn": "0.weight"}] * 2, "each once, got 0.weight, 0.weight"),
        (["0.weight"], "list of dicts .*got '0.weight'"),
        ([{"tensor_fqn": "0.weight", "sparcity": 0.25}], "got 'sparcity'; did you mean 'sparsity'"),
        ([{"tensor_fqn": "0.weight", "options": {"bogus": 2}}], "no option 'bogus'"),
        ([{"tensor_fqn": "0.weight", "options": {"solver": "wanda"}}], "has no option 'solver'"),
        ([{"tensor_fqn": "0.weight", "options": 5}], "options must be arguments of solve by name"),
        ([{"tensor_fqn": "0.weight", "sparsity": None, "pattern": "2:5"}], "does not fit"),
    ]:
        with pytest.raises(RelaxPruneError, match=expected):
            RelaxPruneSparsifier(sparsity=0.5).prepare(model, config)
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(RelaxPruneError, match="tied to"):
        RelaxPruneSparsifier(sparsity=0.5).prepare(tied, [{"tensor_fqn": "0.weight"}])
    assert not model[0]._forward_pre_hooks and not hasattr(model[0], "parametrizations")


def test_attention_of_torch_leaves_out_what_is_never_called():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 1)
    sparsifier = RelaxPruneSparsifier(sparsity=0.5, solver="wanda")
    sparsifier.prepare(model)
    model(torch.randn(3, 5, 8))
    sparsifier.step()
    sparsifier.squash_mask()
    pruned = [
        name
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and float((weight == 0).float().mean()) == 0.5
    ]
    assert pruned == ["layers.0.linear1.weight", "layers.0.linear2.weight"]
