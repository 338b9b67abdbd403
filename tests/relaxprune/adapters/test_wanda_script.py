"""Scripts like Wanda's: their statistics and signature in, their mask out, which is True where a weight is PRUNED."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError, solve
from relaxprune.adapters import one_weight
from relaxprune.adapters.wanda_script import LayerStatistics, pruned_mask


def ranked(weight: Tensor, inputs: Tensor, ratio: float, prune_n: int, prune_m: int) -> Tensor:
    """Wanda's rule: the smallest |w| times the norm of the input are pruned, in each row or group."""
    score = weight.abs() * inputs.square().mean(0).sqrt()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    width, count = (prune_m, prune_n) if prune_n else (weight.shape[1], int(weight.shape[1] * ratio))
    for start in range(0, weight.shape[1], width):
        lowest = score[:, start : start + width].topk(count, dim=1, largest=False).indices
        mask.scatter_(1, start + lowest, True)
    return mask


@pytest.mark.parametrize("amount", [(0.3, 0, 0), (0.5, 2, 4), (0.5, 1, 4)])
def test_solver_wanda_gives_the_mask_that_such_a_script_makes(amount: tuple[float, int, int]) -> None:
    layer, inputs = nn.Linear(16, 6), torch.randn(200, 16) * torch.arange(1, 17)
    statistics = LayerStatistics(layer, 3, "mlp.up_proj")
    for part in inputs.split(50):  # a script calls with one sequence at a time
        statistics.add_batch(part.unsqueeze(0), None)
    mask = pruned_mask(layer, statistics, *amount, solver="wanda")
    assert torch.equal(mask, ranked(layer.weight, inputs, *amount))
    assert statistics.figures is not None and statistics.figures.tokens == 200


@pytest.mark.parametrize(("amount", "polytope"), [((0.5, 0, 0), KSparse(8)), ((0.5, 1, 4), NM(3, 4))])
def test_pruned_saved_reloaded_and_equal_to_solve(
    amount: tuple[float, int, int], polytope: KSparse | NM, tmp_path: Path, device: torch.device
) -> None:
    layer, inputs = nn.Linear(16, 6, device=device), torch.randn(200, 16, device=device)
    dense = layer.weight.detach().clone()
    statistics = LayerStatistics(layer)
    handle = layer.register_forward_hook(lambda _module, inp, out: statistics.add_batch(inp[0].data, out.data))
    layer(inputs.reshape(2, 100, 16))
    handle.remove()
    kept = solve(MaskProblem(dense, statistics.inputs.gram(), polytope)).mask
    layer.weight.data[pruned_mask(layer, statistics, *amount)] = 0
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    assert torch.equal(
        load_file(tmp_path / "layer.safetensors", device=str(device))["weight"], dense.masked_fill(~kept, 0.0)
    )
    assert torch.equal(pruned_mask(dense, statistics.inputs.gram(), *amount), ~kept), "a weight and a Gram do as well"


def test_refusals() -> None:
    layer = nn.Linear(16, 6)
    for call, expected in [
        (lambda: pruned_mask(layer, LayerStatistics(layer, 3, "up"), 0.5), "no token reached layer '3.up'"),
        (lambda: pruned_mask(layer, torch.eye(16)), "exactly one of sparsity"),
        (lambda: pruned_mask(layer, torch.eye(16), 0.5, 5, 4), "at most prune_m, or both 0, got 5:4"),
        (lambda: pruned_mask(layer, torch.eye(16), 0.5, 0, 4), "got 0:4"),
        (lambda: pruned_mask(layer, torch.eye(8), 0.5), "gram is 8 x 8"),
        (lambda: pruned_mask(torch.ones(3), torch.eye(3), 0.5), "must be a float matrix"),
        (lambda: pruned_mask(torch.ones(3, 3, dtype=torch.int8), torch.eye(3), 0.5), "got torch.int8"),
        (lambda: pruned_mask(layer, None, 0.5), "statistics must be LayerStatistics or a Gram .*got NoneType"),
        (lambda: pruned_mask(None, torch.eye(16), 0.5), "module must be a torch.nn.Module, got NoneType"),
        (lambda: pruned_mask(layer, torch.eye(16), "0.5"), r"must lie in \[0, 1\], got '0.5'"),
        (lambda: LayerStatistics(layer).add_batch(torch.full((1, 2, 16), torch.inf)), "NaN or Inf"),
    ]:
        with pytest.raises(RelaxPruneError, match=expected):
            call()


def test_a_method_that_is_known_for_its_weights_gives_its_mask_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    one_weight._warn_of_mask_alone.cache_clear()
    for _ in range(2):
        pruned = pruned_mask(torch.randn(4, 8), torch.eye(8), 0.5, solver="alps")
    assert bool((pruned.sum(dim=1) == 4).all())
    said = [record.getMessage() for record in caplog.records]
    assert said == ["an adapter takes the mask of alps alone, which prune_model would give new weights as well"]
