from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relaxprune import NM, MaskProblem, RelaxPruneError, Status, solve
from relaxprune.problems import QuadraticProblem
from relaxprune.problems.polytopes import KSparse
from relaxprune.solvers.exchange.ils import IteratedLocalSearch
from relaxprune.solvers.reference.enumeration import Enumerate
from tests.counting import counted
from tests.layers import POLYTOPES, SHAPE, layer
from tests.random_problems import Draw, random_case


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", POLYTOPES)
def test_feasible_and_at_least_as_good_as_descent(name, fixed):
    problem, rule = layer(name, fixed=fixed)
    solution = solve(problem, IteratedLocalSearch(), max_iterations=200)
    assert rule.feasible(solution.mask)
    assert solution.objective <= solve(problem, "swap").objective * (1 + 1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_counts_hold_without_a_polish_and_the_start_is_never_beaten(seed):
    case = random_case(seed)
    start = case.problem.polytope.round(case.problem.score("magnitude"))
    solution = solve(case.problem, IteratedLocalSearch(2), start=start, polish=None, max_iterations=30)
    assert case.rule.feasible(solution.mask), case.label
    noise = 1e-12 * float(case.problem.diagonal.sum()) * case.problem.shape[1]
    before = case.problem.block_objective(start)
    assert bool((solution.block_objective <= before * (1 + 1e-9) + noise).all()), case.label


def test_finds_the_optimum_of_tiny_rows():
    draw = Draw(1)
    problem = QuadraticProblem(*_portfolio(draw), KSparse(6))
    truth = solve(problem, Enumerate(), start=None)
    found = solve(problem, IteratedLocalSearch(), start=None, max_iterations=300)
    assert found.objective == pytest.approx(truth.objective, rel=1e-9)


def _portfolio(draw: Draw):
    factor = draw.normal(20, 14)
    return factor.T @ factor / 20, draw.normal(5, 14)


def test_seeded():
    problem, _ = layer("row")
    start = problem.polytope.round(Draw(9).uniform(0, 1, *SHAPE))
    one, same, other = (
        solve(problem, IteratedLocalSearch(1), start=start, polish=None, max_iterations=25, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.mask, same.mask) and one.stats.swaps == same.stats.swaps
    assert one.stats.swaps != other.stats.swaps


def test_products_are_counted():
    problem, _ = layer("row")
    with counted(SHAPE[0]) as products:
        solution = solve(problem, IteratedLocalSearch(3), polish=None, max_iterations=40)
    assert solution.stats.products == pytest.approx(products.done)


def test_budgets():
    problem, _ = layer("row")
    few = solve(problem, IteratedLocalSearch(), max_iterations=7)
    assert few.status is Status.ITERATION_LIMIT and few.stats.iterations == 7
    started = time.monotonic()
    late = solve(problem, IteratedLocalSearch(), time_limit_s=0.3)
    assert late.status is Status.TIME_LIMIT and time.monotonic() - started < 2
    split = solve(problem, IteratedLocalSearch(), time_limit_s=0.3, memory_budget_bytes=60_000)
    assert problem.polytope.contains(split.mask)


def test_options_are_checked():
    with pytest.raises(RelaxPruneError, match="copies"):
        IteratedLocalSearch(0)


@pytest.mark.parametrize("case", ["all kept", "none kept", "all fixed", "groups all kept"])
def test_where_no_exchange_exists_the_search_ends_at_once(case):
    base, _ = layer("row")
    free = torch.ones(SHAPE, dtype=torch.bool)
    problem = {
        "all kept": lambda: MaskProblem(base.weight, base.gram, KSparse(SHAPE[1])),
        "none kept": lambda: MaskProblem(base.weight, base.gram, KSparse(0)),
        "all fixed": lambda: MaskProblem(
            base.weight, base.gram, KSparse(12), fixed_kept=free.cumsum(1) <= 12, fixed_pruned=free.cumsum(1) > 14
        ),
        "groups all kept": lambda: MaskProblem(base.weight, base.gram, NM(4, 4)),
    }[case]()
    for limits in ({}, {"time_limit_s": 60.0}):
        solution = solve(problem, "ils", polish=None, **limits)
        assert solution.stats.iterations == 0 and not solution.stats.swaps
        assert solution.status in (Status.CONVERGED, Status.OPTIMAL)
    one = free.cumsum(1) <= 11  # one count to place, one exchange
    problem = MaskProblem(base.weight, base.gram, KSparse(12), fixed_kept=one, fixed_pruned=free.cumsum(1) > 13)
    assert solve(problem, "ils", polish=None, max_iterations=5).stats.iterations == 5
