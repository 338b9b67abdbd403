from __future__ import annotations

import time

import pytest
import torch

from relaxprune import Status, solve
from relaxprune.solvers import Progress
from relaxprune.solvers.base import CHECK_EVERY
from relaxprune.solving.solving import least_memory
from tests.counting import broken_at
from tests.layers import POLYTOPES, SHAPE, layer

ITERATIVE = ["fw", "sparsefw"]


@pytest.mark.parametrize("solver", ITERATIVE)
@pytest.mark.parametrize("iterations", [1, 5, 10, 33])
def test_the_iteration_budget_is_kept(solver, iterations):
    problem, rule = layer("row")
    solution = solve(problem, solver, max_iterations=iterations, polish=None)
    assert solution.stats.iterations <= iterations and rule.feasible(solution.mask)


def test_a_budget_that_ends_first_is_said():
    problem, _ = layer("row")
    plain = solve(problem, "fw", anneal=False, max_iterations=3, gap_tolerance=1e-9, polish=None)
    assert plain.status is Status.ITERATION_LIMIT and plain.stats.iterations == 3


@pytest.mark.parametrize("solver", [*ITERATIVE, "swap"])
@pytest.mark.parametrize("name", POLYTOPES)
def test_the_time_limit_is_kept_and_said(solver, name):
    problem, rule = layer(name)
    started = time.monotonic()
    solution = solve(problem, solver, time_limit_s=1e-6)
    assert time.monotonic() - started < 5
    assert solution.status is Status.TIME_LIMIT and rule.feasible(solution.mask)
    assert solution.lower_bound <= solution.objective
    assert solution.stats.iterations <= CHECK_EVERY


def test_the_time_limit_ends_a_long_run():
    problem, _ = layer("row")
    started = time.monotonic()
    solution = solve(
        problem,
        "sparsefw",
        max_iterations=10**9,
        time_limit_s=0.3,
        memory_budget_bytes=least_memory(problem, "sparsefw"),
    )
    assert 0.2 < time.monotonic() - started < 5
    assert solution.status is Status.TIME_LIMIT and 0.2 < solution.stats.seconds < 5


def test_the_callback_hears_every_ten_iterations_of_every_block():
    problem, _ = layer("row")
    heard: list[Progress] = []
    budget = least_memory(problem, "sparsefw")
    solution = solve(problem, "sparsefw", max_iterations=35, memory_budget_bytes=budget, callback=heard.append)
    blocks = heard[0].bands
    assert blocks == SHAPE[0] and {item.band for item in heard} == set(range(blocks))
    for block in range(blocks):
        mine = [item for item in heard if item.band == block]
        assert [item.iteration for item in mine] == [10, 20, 30, 35]
        assert all(item.solver == "sparsefw" and item.active_blocks in (0, 1) for item in mine)
        assert [item.products for item in mine] == sorted(item.products for item in mine)
    assert heard[-1].products == solution.stats.products
    assert [item.seconds for item in heard] == sorted(item.seconds for item in heard)


def test_a_callback_may_stop_by_raising():
    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise Enough

    problem, _ = layer("row")
    with pytest.raises(Enough):
        solve(problem, callback=stop)


@pytest.mark.parametrize("solver", ITERATIVE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("call", [1, 7, 15])
def test_leaving_the_finite_numbers_raises(solver, value, call):
    problem, _ = layer("row")
    with broken_at(call, value), pytest.raises(FloatingPointError, match="left the finite numbers"):
        solve(problem, solver, max_iterations=100)


@pytest.mark.parametrize("solver", ITERATIVE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("polish", [None, "swap"])
def test_leaving_the_finite_numbers_is_said_without_throw(solver, value, small, polish):
    problem, rule = layer("row")
    budget = least_memory(problem, solver, polish) if small else None
    with broken_at(7, value):
        solution = solve(problem, solver, max_iterations=100, throw=False, polish=polish, memory_budget_bytes=budget)
    assert solution.status is Status.NOT_FINITE
    assert rule.feasible(solution.mask)
    assert solution.objective == pytest.approx(problem.objective(solution.mask))
    assert 0 <= solution.lower_bound <= solution.objective
    if solution.relaxed_mask is not None:
        # Also for the rows that broke: no memory that nobody wrote.
        assert bool(((solution.relaxed_mask >= -1e-5) & (solution.relaxed_mask <= 1 + 1e-5)).all())


def test_a_status_carries_advice():
    for status in Status:
        assert (
            status.value[0].isupper()
            and status.value.endswith(".")
            and status.failed == (status.name in ("NOT_FINITE", "BACKEND_FAILED"))
        )


@pytest.mark.parametrize("solver", ITERATIVE)
@pytest.mark.parametrize("name", ["row", "2:4", "row at most"])
def test_blocks_of_rows_give_the_same_quality(solver, name):
    problem, rule = layer(name, seed=6)
    whole = solve(problem, solver, max_iterations=200)
    split = solve(problem, solver, max_iterations=200, memory_budget_bytes=least_memory(problem, solver))
    assert rule.feasible(split.mask)
    assert split.objective == pytest.approx(whole.objective, rel=0.005)
    assert split.lower_bound == pytest.approx(whole.lower_bound, rel=0.005)


def test_double_precision_is_an_option():
    problem, _ = layer("row")
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        relaxed = solve(problem, dtype=name).relaxed_mask
        assert relaxed is not None and relaxed.dtype == dtype
