"""What a solver is given and does not use is refused, and a status never says more than was reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from relaxprune import KSparse, RelaxPruneError, Solution, Status, solve
from relaxprune.problems import MaskProblem
from relaxprune.solvers import Answer, Run, make_solver, solver_names
from relaxprune.solvers.base import BUDGETS
from relaxprune.solvers.exchange.swap import Swap
from relaxprune.solving.comparison import ComparisonOptions, compare
from tests.layers import layer
from tests.random_problems import Draw

GIVEN: dict[str, Any] = {"start": "ria", "max_iterations": 3, "time_limit_s": 60.0, "gap_tolerance": 0.5}
IGNORED = [
    ("sparsefw", {}, {"gap_tolerance"}),
    ("swap", {}, {"gap_tolerance"}),
    ("ils", {}, {"gap_tolerance"}),
    ("admm", {}, {"gap_tolerance"}),
    ("admm", {"variant": "relaxed"}, set()),
    ("reconstruct", {}, {"gap_tolerance"}),
    ("obs-swap", {}, {"gap_tolerance"}),
    ("alps", {}, {"start", "gap_tolerance"}),
    ("sparsegpt", {}, {"start", "max_iterations", "time_limit_s", "gap_tolerance"}),
    ("exact", {}, {"gap_tolerance"}),
    ("exact", {"backend": "daqp"}, {"gap_tolerance", "max_iterations"}),
    ("enumerate", {}, {"gap_tolerance"}),
    ("cvxpy", {}, set()),
    ("cvxpy", {"backend": "HIGHS"}, {"max_iterations"}),
    *((name, {}, {"start", "max_iterations", "gap_tolerance"}) for name in ("wanda", "ria", "magnitude")),
    *((name, {}, set()) for name in ("fw", "dicg", "fista", "afw", "pfw", "bpfw")),
]


def small() -> MaskProblem:
    draw = Draw(3)
    inputs = draw.normal(30, 6)
    return MaskProblem(draw.normal(2, 6), inputs.T @ inputs / 30, KSparse(3))


def test_every_solver_is_in_the_list():
    assert {name for name, _, _ in IGNORED} == set(solver_names())


@pytest.mark.parametrize(("name", "options", "ignored"), IGNORED)
@pytest.mark.parametrize("budget", BUDGETS)
def test_what_would_have_no_effect_is_refused(name, options, ignored, budget):
    if budget not in ignored:
        assert budget in make_solver(name, **options).budgets()
        return
    with pytest.raises(RelaxPruneError) as refused:
        solve(small(), name, **options, **{budget: GIVEN[budget]})
    message = str(refused.value)
    assert message.startswith(f"{budget} is {GIVEN[budget]!r}, which solver {name!r} does not use")
    assert "\n" not in message


@pytest.mark.parametrize("start", [None, "magnitude", torch.ones(2, 6, dtype=torch.bool)])
def test_a_start_is_refused_in_every_form_but_the_default(start):
    with pytest.raises(RelaxPruneError, match=r"start is .*does not use"):
        solve(small(), "wanda", start=start)
    assert solve(small(), "wanda", start="auto").status is Status.CONVERGED


def test_a_polish_takes_the_time_limit():
    assert solve(small(), "wanda", polish="swap", time_limit_s=60.0).polish == "swap"


def test_a_comparison_gives_each_what_it_takes_and_says_so():
    asked = ComparisonOptions(start="ria", max_iterations=20, gap_tolerance=0.1, polish=None)
    comparison = compare(small(), ["fw", "swap", "wanda"], options=asked)
    rows = {row.solver: row for row in comparison.rows}
    assert all(row.result is not None for row in rows.values())
    assert rows["fw"].unused == () and rows["swap"].unused == ("gap_tolerance",)
    assert rows["wanda"].unused == ("start", "max_iterations", "gap_tolerance")
    assert "wanda: does not use start, max_iterations, gap_tolerance" in str(comparison)
    swap = solve(small(), "swap", start="ria", max_iterations=20, polish=None)
    assert rows["swap"].result is not None and rows["swap"].result.objective == swap.objective
    assert all(row.unused == () for row in compare(small(), ["fw", "wanda"]).rows)


def test_a_default_that_is_spelt_out_counts_as_not_given():
    spelt = "".join(["au", "to"])  # equal to the default and another object, as a command line gives it
    assert compare(small(), ["magnitude"], start=spelt).rows[0].unused == ()
    mask = solve(small(), "wanda").mask
    assert compare(small(), ["magnitude"], options=ComparisonOptions(start=mask)).rows[0].unused == ("start",)


def ends_at_rest(problem: MaskProblem, solution: Solution) -> bool:
    """Whether the mask is where the oracle of its own gradient, annealed to θ = 1, leaves every row."""
    mask = solution.mask.double()
    annealed = problem.half_gradient(mask) - problem.diagonal * (mask - 0.5)
    return torch.equal(problem.polytope.lmo(annealed), mask)


@pytest.mark.parametrize("iterations", [4, 60, 210])
def test_annealing_converges_where_no_step_would_leave_the_vertex(iterations):
    seen = set()
    for seed in range(2):
        problem, _ = layer("row", seed)
        solution = solve(problem, "fw", dtype="float64", max_iterations=iterations, polish=None)
        seen.add(solution.status)
        if solution.status is Status.CONVERGED:
            assert ends_at_rest(problem, solution)
        else:
            assert solution.status is Status.ITERATION_LIMIT and solution.stats.iterations == iterations
    assert iterations > 4 or seen == {Status.ITERATION_LIMIT}


def test_annealing_ends_at_rest_where_columns_are_independent():
    problem = MaskProblem(torch.ones(3, 8), torch.diag(torch.arange(1.0, 9.0)), KSparse(4))
    answer = make_solver("fw", dtype="float64").run(
        problem, Run(start=solve(problem, "wanda").mask, max_iterations=100)
    )
    assert answer.status is Status.CONVERGED and answer.point.tolist() == [[0.0] * 4 + [1.0] * 4] * 3


def test_sparsefw_converges_only_where_nothing_is_left_to_choose():
    problem, _ = layer("row")
    assert solve(problem, "sparsefw", max_iterations=30).status is Status.ITERATION_LIMIT
    settled = solve(problem, "sparsefw", alpha=1.0, at_most=False, max_iterations=30)
    assert settled.status is Status.CONVERGED and settled.stats.iterations == 30


@pytest.mark.parametrize(
    ("solver", "polish", "expected"),
    [
        ("fw", Status.CONVERGED, Status.ITERATION_LIMIT),
        ("wanda", Status.ITERATION_LIMIT, Status.ITERATION_LIMIT),
        ("wanda", Status.TIME_LIMIT, Status.TIME_LIMIT),
        ("wanda", Status.CONVERGED, Status.CONVERGED),
        ("enumerate", Status.ITERATION_LIMIT, Status.OPTIMAL),
    ],
)
def test_a_polish_that_ended_early_shows(solver, polish, expected, monkeypatch):
    monkeypatch.setattr(Swap, "run", lambda self, problem, run: Answer(run.start, status=polish))
    options = {"max_iterations": 3} if solver == "fw" else {}
    assert solve(small(), solver, polish="swap", **options).status is expected
