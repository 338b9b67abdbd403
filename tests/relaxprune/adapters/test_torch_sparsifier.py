"""torch.ao.pruning: prepare, calibrate, step and squash_mask give the masks of `solve`."""

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
    ]:
        with pytest.raises(RelaxPruneError, match=expected):
            RelaxPruneSparsifier(**arguments)
    for config, expected in [
        ([{"tensor_fqn": "0.weights"}], "did you mean '0.weight'"),
        ([{}], "got None"),
        ([{"tensor_fqn": "0.weight", "sparsity": None, "pattern": "2:5"}], "does not fit"),
    ]:
        with pytest.raises(RelaxPruneError, match=expected):
            RelaxPruneSparsifier(sparsity=0.5).prepare(model, config)
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(RelaxPruneError, match="tied to"):
        RelaxPruneSparsifier(sparsity=0.5).prepare(tied, [{"tensor_fqn": "0.weight"}])
    assert not model[0]._forward_pre_hooks and not hasattr(model[0], "parametrizations")
