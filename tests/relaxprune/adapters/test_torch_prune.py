"""torch.nn.utils.prune: our methods are torch's own kind, compose with others, and hold the mask of ``solve``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError, solve
from relaxprune.adapters.torch_prune import relaxprune_n_m, relaxprune_unstructured, solution_of


def gram_of(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


@pytest.fixture
def gram(generator: torch.Generator) -> Tensor:
    return gram_of(torch.randn(64, 16, generator=generator) @ torch.randn(16, 16, generator=generator))


@pytest.mark.parametrize("amount", [0.5, "2:4"])
def test_pruned_saved_reloaded_and_equal_to_solve(
    gram: Tensor, tmp_path: Path, amount: float | str, device: torch.device
) -> None:
    module, gram = nn.Linear(16, 6, device=device), gram.to(device)
    dense = module.weight.detach().clone()
    polytope = KSparse(8) if isinstance(amount, float) else NM(2, 4)
    mask = solve(MaskProblem(dense, gram, polytope)).mask
    if isinstance(amount, float):
        assert relaxprune_unstructured(module, "weight", gram, amount) is module
    else:
        assert relaxprune_n_m(module, "weight", gram, amount) is module
    assert prune.is_pruned(module) and torch.equal(solution_of(module, "weight").mask, mask)
    assert torch.equal(module.weight_mask.bool(), mask) and torch.equal(module.weight_orig, dense)
    # Through the state_dict while it is still pruned, into a fresh module.
    save_file(module.state_dict(), tmp_path / "pruned.safetensors")
    twin = prune.identity(nn.Linear(16, 6, device=device), "weight")
    twin.load_state_dict(load_file(tmp_path / "pruned.safetensors", device=str(device)))
    inputs = torch.randn(5, 16, device=device)
    assert torch.equal(twin(inputs), module(inputs))
    # And for good.
    prune.remove(module, "weight")
    save_file(module.state_dict(), tmp_path / "removed.safetensors")
    plain = nn.Linear(16, 6, device=device)
    plain.load_state_dict(load_file(tmp_path / "removed.safetensors", device=str(device)))
    assert torch.equal(plain.weight, dense.masked_fill(~mask, 0.0))
    assert not torch.signbit(plain.weight[~mask]).any(), "zeros are +0.0"


def test_kept_weights_can_be_trained(gram: Tensor) -> None:
    module = relaxprune_unstructured(nn.Linear(16, 6), "weight", gram, 0.5)
    module(torch.randn(8, 16)).square().sum().backward()
    kept = module.weight_mask.bool()
    assert (module.weight_orig.grad[kept] != 0).all() and (module.weight_orig.grad[~kept] == 0).all()


def test_what_was_pruned_before_stays_pruned_and_counts(gram: Tensor) -> None:
    module = nn.Linear(16, 6)
    dense = module.weight.detach().clone()
    prune.l1_unstructured(module, "weight", amount=12)
    before = module.weight_mask.bool().clone()
    relaxprune_unstructured(module, "weight", gram, 0.75, seed=3)
    mask = module.weight_mask.bool()
    assert (mask.sum(1) == 4).all() and not (mask & ~before).any()
    problem = MaskProblem(dense.masked_fill(~before, 0.0), gram, KSparse(4), fixed_pruned=~before)
    assert torch.equal(mask, solve(problem, seed=3).mask)
    (container,) = module._forward_pre_hooks.values()
    assert isinstance(container, prune.PruningContainer) and len(container) == 2
    solution = solution_of(module, "weight")
    assert solution is not None and torch.equal(solution.mask, mask)
    # A third method of torch's goes on top of ours; then all of it is made permanent.
    prune.random_unstructured(module, "weight", amount=4)
    assert int(module.weight_mask.sum()) == 20 and solution_of(module, "weight") is solution
    prune.remove(module, "weight")
    assert int(module.weight.count_nonzero()) == 20 and solution_of(module, "weight") is None


@torch.no_grad()  # torch copies no module whose weight hangs on a graph
@pytest.mark.parametrize("order", ["ours", "theirs first", "theirs twice first", "theirs last"])
def test_all_zeros_are_positive_whichever_method_chose_them(gram: Tensor, order: str) -> None:
    module = nn.Linear(16, 6)
    for _ in range({"theirs first": 1, "theirs twice first": 2}.get(order, 0)):
        prune.l1_unstructured(module, "weight", amount=6)
    relaxprune_unstructured(module, "weight", gram, 0.75)
    if order == "theirs last":
        prune.random_unstructured(module, "weight", amount=6)
    module = copy.deepcopy(module)
    assert not torch.signbit(module.weight[module.weight == 0]).any()
    module.weight_orig.neg_()
    module(torch.randn(2, 16))
    pruned = module.weight_mask == 0
    prune.remove(module, "weight")
    assert pruned.sum() == 72 + 6 * (order == "theirs last") and not module._forward_pre_hooks
    assert not torch.signbit(module.weight[pruned]).any() and not module.weight[pruned].any()


def test_a_pruned_parameter_is_measured_as_it_is_now_not_as_in_the_last_forward_pass(gram: Tensor) -> None:
    module = prune.identity(nn.Linear(16, 6), "weight")
    module(torch.randn(8, 16)).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    now = module.weight_orig.detach().clone()
    assert not torch.equal(module.weight, now)
    expected = solve(MaskProblem(now, gram, KSparse(8)))
    relaxprune_unstructured(module, "weight", gram, 0.5)
    found = solution_of(module, "weight")
    assert torch.equal(found.mask, expected.mask) and found.objective == expected.objective


def test_a_refusal_leaves_the_module_and_its_earlier_pruning_as_they_were(gram: Tensor) -> None:
    module = nn.Linear(16, 6)
    prune.custom_from_mask(module, "weight", torch.arange(16).expand(6, 16) >= 12)  # a quarter is left
    state, hooks = copy.deepcopy(module.state_dict()), list(module._forward_pre_hooks.values())
    with pytest.raises(RelaxPruneError, match="no feasible mask"):
        relaxprune_unstructured(module, "weight", gram, 0.5)
    assert list(module._forward_pre_hooks.values()) == hooks
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    untouched, eighth = nn.Linear(16, 6), nn.Linear(16, 6).to(torch.float8_e4m3fn)
    for call, expected in [
        (lambda: relaxprune_unstructured(untouched, "weights", gram, 0.5), "'weights'; it has 'weight', 'bias'"),
        (lambda: relaxprune_unstructured(untouched, "bias", gram, 0.5), "'bias' of the Linear must be a float matrix"),
        (lambda: relaxprune_unstructured(untouched, "weight", gram[:8, :8], 0.5), "gram is 8 x 8"),
        (lambda: relaxprune_unstructured(untouched, "weight", gram, 1.5), r"must lie in \[0, 1\], got 1.5"),
        (lambda: relaxprune_unstructured(untouched, "weight", gram, "0.5"), r"must lie in \[0, 1\], got '0.5'"),
        (lambda: relaxprune_unstructured(untouched, 5, gram, 0.5), "name must be a parameter of the Linear, got 5"),
        (lambda: relaxprune_unstructured(eighth, "weight", gram, 0.5), "float16, .*got torch.float8_e4m3fn"),
        (lambda: relaxprune_unstructured(untouched, "weight", gram, 0.5, problem=1), "problem"),
        (lambda: relaxprune_unstructured(untouched, "weight", gram, 0.5, polish="obs-swap"), 'or polish "swap"'),
        (lambda: relaxprune_unstructured(untouched, "weight", gram, 0.5, "fww"), "did you mean 'fw'"),
        (lambda: relaxprune_unstructured(untouched, "weight", gram, 0.5, effor="best"), "effort"),
        (lambda: relaxprune_n_m(untouched, "weight", gram, "2:5"), "does not divide"),
        (lambda: relaxprune_n_m(nn.Conv2d(8, 8, 1, groups=2), "weight", gram, "2:4"), "groups=1"),
    ]:
        with pytest.raises(RelaxPruneError, match=expected):
            call()
    assert not prune.is_pruned(untouched)


@pytest.mark.parametrize("make", [lambda: Conv1D(6, 16), lambda: nn.Conv2d(4, 6, 2)], ids=["Conv1D", "Conv2d"])
def test_weights_that_are_stored_another_way(gram: Tensor, make: Callable[[], nn.Module]) -> None:
    module = make()
    relaxprune_n_m(module, "weight", gram, "2:4", "wanda")
    stored = module.weight_mask.bool()
    matrix = stored.T if isinstance(module, Conv1D) else stored.flatten(1)
    assert matrix.reshape(6, 4, 4).sum(-1).eq(2).all()
    prune.remove(module, "weight")
    assert int(module.weight.count_nonzero()) == 48
