"""A small memory budget bounds what a solve allocates at once, beside outputs of the size of the weight."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from relaxprune import (
    NM,
    KSparse,
    MaskProblem,
    RelaxPruneError,
    Status,
    certify,
    plan_model,
    solve,
)
from relaxprune.options.prune_options import PruneOptions
from relaxprune.pruning.mask_solver import wanda_objective
from relaxprune.solvers import make_solver, solver_names
from relaxprune.solvers.exchange.engine.local_search import LocalSearch
from relaxprune.solving.solving import least_memory

from ..tiny_models import tiny_model

ROWS, COLS, BUDGET = 2048, 64, 2**18  # a whole float64 matrix is four times the budget


def tensors(values: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in arguments or results, however deep (torch's own walk takes twice the time of the work)."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors(value)
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages made inside and still alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in known and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.sizes.values()))
        return result


def large() -> MaskProblem:
    """A problem whose f(0), which is judged once per problem, is known."""
    inputs = torch.randn(256, COLS)
    problem = MaskProblem(torch.randn(ROWS, COLS), inputs.T @ inputs / 256, KSparse(32))
    _ = problem.dense_energy
    return problem


@pytest.mark.parametrize("start", ["wanda", "ria", None])
def test_the_peak_is_outputs_and_the_budget(start):
    problem = large()
    whole = solve(problem, "fw", start=start, polish=None, max_iterations=2)
    with Peak() as peak:
        solution = solve(problem, "fw", start=start, polish=None, max_iterations=2, memory_budget_bytes=BUDGET)
    assert torch.equal(solution.mask, whole.mask)
    outputs = ROWS * COLS * (2 + 4)  # start and mask, and the relaxed mask in float32
    assert outputs < peak.most < outputs + 2 * BUDGET


@pytest.mark.parametrize(
    ("solver", "outputs", "options"),
    [
        ("wanda", 2, {}),  # bytes an entry: start and mask
        ("ria", 2, {}),
        ("sparsefw", 2 + 4 * 2 + 1, {"max_iterations": 2}),  # two relaxed masks and the fixed entries besides
        ("fw", 2 + 4 + 1, {"max_iterations": 2, "polish": "swap"}),  # the rounded mask besides
    ],
)
def test_the_peak_of_every_kind_of_solver_is_outputs_and_the_budget(solver, outputs, options):
    problem = large()
    whole = solve(problem, solver, **options)
    with Peak() as peak:
        solution = solve(problem, solver, memory_budget_bytes=BUDGET, **options)
    assert torch.equal(solution.mask, whole.mask)
    assert peak.most < outputs * ROWS * COLS + 2 * BUDGET


def test_the_peak_of_a_certificate_is_outputs_and_the_budget():
    problem = large()
    mask = solve(problem, "wanda").mask
    whole = certify(problem, mask, max_iterations=2)
    with Peak() as peak:
        certificate = certify(problem, mask, max_iterations=2, memory_budget_bytes=BUDGET)
    assert certificate.lower_bound == pytest.approx(whole.lower_bound)
    assert peak.most < (4 * 2) * ROWS * COLS + 2 * BUDGET


def test_wandas_mask_is_judged_within_the_budget_of_a_layer():
    problem = large()
    solution = solve(problem, "magnitude")
    with Peak() as peak:
        wanda = wanda_objective(problem, solution, BUDGET)
    assert wanda == pytest.approx(solve(problem, "wanda").objective)
    assert peak.most < ROWS * COLS + 2 * BUDGET


def test_the_first_incumbent_of_exact_is_searched_within_the_budget(monkeypatch):
    pytest.importorskip("pyscipopt")
    heights = []
    original = LocalSearch.__init__

    def watched(self, problem, group, mask, copies, seed):
        heights.append(mask.shape[0])
        original(self, problem, group, mask, copies, seed)

    monkeypatch.setattr(LocalSearch, "__init__", watched)
    inputs = torch.randn(30, 8)
    problem = MaskProblem(torch.randn(6, 8), inputs.T @ inputs / 30, KSparse(4))
    whole = solve(problem, "exact")
    split = solve(problem, "exact", memory_budget_bytes=14 * 8 * 8 * 8 * 2)
    assert heights == [6, 2, 2, 2] and split.status is whole.status is Status.OPTIMAL
    assert split.objective == pytest.approx(whole.objective)


@pytest.mark.parametrize("name", [name for name in solver_names() if name not in ("cvxpy", "exact")])
@pytest.mark.parametrize("polytope", [KSparse(4), KSparse(8, per="layer"), NM(2, 4)])
def test_a_budget_below_one_block_is_refused_with_the_number_needed(name, polytope):
    problem = MaskProblem(torch.ones(2, 8), torch.eye(8) + 0.5, polytope)
    least = least_memory(problem, name)
    with pytest.raises(RelaxPruneError, match=rf"memory_budget_bytes is {least - 1}, but .* needs at least {least} "):
        solve(problem, name, memory_budget_bytes=least - 1)
    few = {"max_iterations": 5} if "max_iterations" in make_solver(name).budgets() else {}
    assert problem.feasible(solve(problem, name, memory_budget_bytes=least, **few).mask)


def test_a_run_is_refused_before_it_begins():
    model = tiny_model("llama")
    options = PruneOptions(memory_budget_bytes=100)
    with pytest.raises(RelaxPruneError, match=r"layer 'model.layers.0.*memory_budget_bytes is 100, but 'fw' needs at"):
        plan_model(model, sparsity=0.5, options=options, solver=make_solver("fw"))
