from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import (
    KSparse,
    MaskProblem,
    QuadraticProblem,
    RelaxPruneError,
    Status,
    solve,
)
from relaxprune.problems.polytopes.transposable import TransposableNM
from relaxprune.solvers import Budget, IterativeSolver, Run, make_solver
from relaxprune.solving.solving import least_memory
from tests.conftest import LONG
from tests.counting import broken_at, counted
from tests.layers import POLYTOPES, SHAPE, layer
from tests.random_problems import random_case
from tests.relaxations import clarabel_minimum, value_and_gap, violation

SEEDS = st.integers(0, 2**31)


def states(problem: MaskProblem, iterations: int, **options):
    """Take the solver's steps one by one, in float64, and yield its state after each."""
    solver = make_solver("fista", dtype="float64", **options)
    assert isinstance(solver, IterativeSolver)
    working = problem.working(torch.float64)
    start = problem.polytope.round(problem.score("wanda"))
    state = solver.init(working, start.double(), Budget.of(solver, Run(start=start, max_iterations=iterations)))
    for _ in range(iterations):
        solver.step(working, state)
        yield working, state


@pytest.mark.parametrize(("scaled", "fixed"), [(True, True), *([(True, False), (False, False)] if LONG else [])])
@pytest.mark.parametrize("name", POLYTOPES)
def test_it_finds_the_minimum_that_clarabel_finds(name, scaled, fixed):
    problem, rule = layer(name, fixed=fixed)
    solution = solve(
        problem, "fista", scaled=scaled, dtype="float64", gap_tolerance=1e-8, max_iterations=20000, polish=None
    )
    assert solution.status is Status.CONVERGED and solution.relaxed_mask is not None
    value, gap = value_and_gap(problem, rule, solution.relaxed_mask)
    assert gap <= 1.01e-8 * value and violation(rule, solution.relaxed_mask) <= 1e-9
    assert solution.relaxed_objective == pytest.approx(value, rel=1e-12)
    assert value == pytest.approx(clarabel_minimum(problem, rule), rel=1e-6)
    assert rule.feasible(solution.mask) and solution.lower_bound <= value * (1 + 1e-12)


@given(seed=SEEDS)
def test_adversarial_problems_stay_feasible_and_bounded(seed):
    case = random_case(seed)
    for dtype, box in (("float32", 1e-4), ("float64", 1e-9)):
        solution = solve(case.problem, "fista", dtype=dtype, max_iterations=60)
        assert not solution.status.failed, case.label
        assert case.rule.feasible(solution.mask), case.label
        assert violation(case.rule, solution.relaxed_mask) <= box, case.label
        assert solution.lower_bound <= solution.objective, case.label


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", POLYTOPES)
def test_every_iterate_is_feasible_and_the_carried_gradients_are_true(name, fixed):
    problem, _ = layer(name, fixed=fixed)
    for working, state in states(problem, 60):
        assert problem.polytope.contains(state.point(), 1e-9)
        assert torch.allclose(state.half_gradient, working.half_gradient(state.mask), atol=1e-9)
        assert torch.allclose(state.ahead_half, working.half_gradient(state.ahead), atol=1e-9)


def test_the_step_bound_ends_no_higher_than_the_largest_curvature_allows():
    """Backtracking raises L by at most a tenth above a curvature that was really met."""
    problem, _ = layer("row")
    for working, state in states(problem, 100, scaled=False):
        largest = torch.stack([torch.linalg.eigvalsh(torch.outer(w, w) * working.gram)[-1] for w in working.weight])
        assert bool((state.bound <= 1.1 * largest * (1 + 1e-9)).all())
    assert bool((state.bound > 1).all()), "the first guess was never corrected"


def test_scaling_pays_where_columns_differ():
    problem, _ = layer("row")
    taken = [solve(problem, "fista", scaled=scaled, max_iterations=20000, polish=None) for scaled in (True, False)]
    assert taken[0].stats.products < 0.7 * taken[1].stats.products


def test_reported_products_are_the_products_done():
    for name in ("row", "layer", "2:4"):
        problem, _ = layer(name)
        for iterations in (1, 7, 120):
            for budget in (None, least_memory(problem, "fista")):
                with counted(SHAPE[0]) as products:
                    solution = solve(problem, "fista", max_iterations=iterations, memory_budget_bytes=budget)
                assert solution.stats.products == pytest.approx(products.done), name
                assert solution.stats.iterations <= iterations


def test_a_gap_tolerance_ends_it():
    problem, rule = layer("row")
    loose = solve(problem, "fista", gap_tolerance=0.3, polish=None, max_iterations=1000)
    tight = solve(problem, "fista", gap_tolerance=1e-3, polish=None, max_iterations=1000)
    assert loose.status is Status.CONVERGED and tight.status is Status.CONVERGED
    assert loose.stats.products < tight.stats.products
    assert loose.relaxed_mask is not None
    value, gap = value_and_gap(problem, rule, loose.relaxed_mask)
    assert 1e-3 * value < gap <= 0.3 * value
    short = solve(problem, "fista", gap_tolerance=1e-9, max_iterations=3)
    assert short.status is Status.ITERATION_LIMIT and short.stats.iterations == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("call", [1, 7, 15])
def test_leaving_the_finite_numbers_is_a_status(value, call):
    problem, rule = layer("row")
    with broken_at(call, value), pytest.raises(FloatingPointError, match="left the finite numbers"):
        solve(problem, "fista", max_iterations=100, gap_tolerance=1e-9)
    with broken_at(call, value):
        solution = solve(problem, "fista", max_iterations=100, gap_tolerance=1e-9, throw=False)
    assert solution.status is Status.NOT_FINITE and rule.feasible(solution.mask)


def test_a_quadratic_that_is_no_layer_is_solved_too(generator):
    draw = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    linear = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    problem = QuadraticProblem(draw.T @ draw / 40, linear, KSparse(4))
    solution = solve(problem, "fista", dtype="float64", gap_tolerance=1e-9, max_iterations=5000)
    reference = solve(problem, "dicg", dtype="float64", gap_tolerance=1e-9)
    assert solution.relaxed_objective == pytest.approx(reference.relaxed_objective, abs=1e-7)


def test_a_set_without_a_projection_is_refused_before_any_work():
    problem = MaskProblem(torch.randn(4, 8), torch.eye(8), TransposableNM(2, 4))
    with pytest.raises(RelaxPruneError, match=r"solver 'fista' needs a projection, which a transposable .* use fw"):
        solve(problem, "fista")
