from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import KSparse, MaskProblem, Status, solve
from relaxprune.problems import RelaxPruneError
from relaxprune.problems.polytopes.transposable import TransposableNM
from relaxprune.solvers import Budget, Run
from relaxprune.solvers.frank_wolfe.dicg import DICG
from relaxprune.solvers.frank_wolfe.fw import FrankWolfe
from relaxprune.solving.solving import least_memory
from tests.counting import broken_at, counted
from tests.enumeration import Rule, magnitude
from tests.layers import POLYTOPES, correlated_gram, layer
from tests.random_problems import SETS, Draw, random_case
from tests.relaxations import clarabel_minimum, value_and_gap, violation

SEEDS = st.integers(0, 2**31)
EXACT = DICG(dtype="float64")


def steps(problem: MaskProblem, solver: DICG, iterations: int):
    """Take the solver's steps one by one and yield the working problem and the state after each."""
    working = problem.working(torch.float64)
    start = problem.polytope.round(problem.score("wanda"))
    state = solver.init(working, start.double(), Budget.of(solver, Run(start=start, max_iterations=iterations)))
    for iteration in range(1, iterations + 1):
        solver.step(working, state)
        if iteration % 10 == 0:
            solver.done(working, state)
        yield working, state


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", POLYTOPES)
def test_closes_the_gap_on_every_set(name, fixed):
    problem, rule = layer(name, fixed=fixed)
    solution = solve(problem, EXACT, gap_tolerance=1e-8, polish=None)
    value, gap = value_and_gap(problem, rule, solution.relaxed_mask)
    assert solution.status in (Status.CONVERGED, Status.OPTIMAL)
    assert -1e-10 * value <= gap <= 1.01e-8 * value and violation(rule, solution.relaxed_mask) <= 1e-10
    assert value == pytest.approx(solution.relaxed_objective, rel=1e-10)
    assert solution.stats.products < 400


@pytest.mark.parametrize("name", ["row", "layer", "2:4 at most"])
def test_finds_the_minimum_that_an_interior_point_method_finds(name):
    problem, rule = layer(name, seed=4, fixed=True)
    solution = solve(problem, EXACT, polish=None)
    assert solution.relaxed_objective == pytest.approx(clarabel_minimum(problem, rule), rel=1e-5)


@pytest.mark.parametrize("in_face", [True, False])
@pytest.mark.parametrize("name", POLYTOPES)
def test_every_step_lowers_the_objective_and_stays_in_the_set(name, in_face):
    problem, rule = layer(name, seed=1, fixed=True)
    last = None
    for working, state in steps(problem, DICG(dtype="float64", in_face=in_face), 100):
        value = working.polytope.block_sum(working.row_value(state.mask, working.half_gradient(state.mask)))
        assert last is None or bool((value <= last + 1e-12 * last.abs() + 1e-12).all())
        assert violation(rule, state.mask) <= 1e-10
        last = value


def test_the_carried_half_gradient_is_the_true_one_while_entries_reach_their_bounds():
    for name in ("row", "layer", "2:4", "row at most"):
        problem, _ = layer(name, seed=2)
        hits = 0
        for working, state in steps(problem, EXACT, 60):
            hits += int(state.hits.sum())
            assert torch.allclose(state.half_gradient, working.half_gradient(state.mask), rtol=1e-9, atol=1e-9)
        assert hits > 0, name


def test_rows_that_are_solved_stay_solved_while_others_go_on():
    """Directions at the level of rounding once grew from step to step, out of the counts."""
    problem, rule = layer("row", seed=1, fixed=True)
    for _, state in steps(problem, EXACT, 300):
        assert violation(rule, state.mask) <= 1e-12
    value, gap = value_and_gap(problem, rule, state.mask)
    assert gap <= 1e-9 * value


def test_directions_inside_the_face_are_conjugate_and_stay_inside():
    problem, _ = layer("row", seed=3)
    checked, previous = 0, None
    for working, state in steps(problem, EXACT, 60):
        free = (state.mask > 0) & (state.mask < 1)
        if bool(state.conjugate[0]) and previous is not None:
            image = working.image(state.direction)
            size = float((state.direction * image).sum(dim=1)[0].abs()) + 1e-300
            old, old_size = previous
            assert abs(float((old * image).sum(dim=1)[0])) <= 1e-6 * (size * old_size) ** 0.5
            assert not bool(state.direction[0][~free[0]].any())
            checked += 1
        previous = None
        if bool(state.conjugate[0]):
            old = state.direction.clone()
            previous = (old, float((old * working.image(old)).sum(dim=1)[0]))
    assert checked >= 3


def test_pairwise_steps_alone_converge_too():
    draw = Draw(6)
    problem = MaskProblem(draw.normal(3, 10), correlated_gram(10, draw), KSparse(5))
    rule = Rule.groups((3, 10), 5, 10)
    solution = solve(
        problem, DICG(dtype="float64", in_face=False), gap_tolerance=1e-3, max_iterations=4000, polish=None
    )
    value, gap = value_and_gap(problem, rule, solution.relaxed_mask)
    assert gap <= 1.01e-3 * value
    assert solve(problem, EXACT, gap_tolerance=1e-3, polish=None).stats.products < solution.stats.products / 3


def test_takes_a_tenth_of_the_products_of_plain_frank_wolfe():
    draw = Draw(0)
    problem = MaskProblem(draw.normal(4, 96), correlated_gram(96, draw), KSparse(48))
    quick = solve(problem, EXACT, gap_tolerance=1e-6, polish=None)
    budget = int(10 * quick.stats.products)
    slow = solve(
        problem, FrankWolfe(anneal=False, dtype="float64"), gap_tolerance=1e-6, max_iterations=budget, polish=None
    )
    assert quick.status is Status.CONVERGED and slow.status is Status.ITERATION_LIMIT
    assert quick.relaxed_objective < slow.relaxed_objective


def test_sets_with_overlapping_counts_take_pairwise_steps():
    draw = Draw(1)
    problem = MaskProblem(draw.normal(4, 4), correlated_gram(4, draw), TransposableNM(2, 4))
    solution = solve(problem, EXACT, max_iterations=500, gap_tolerance=1e-4, polish=None)
    assert solution.status in (Status.CONVERGED, Status.OPTIMAL)
    assert problem.polytope.contains(solution.relaxed_mask, 1e-9)


@pytest.mark.parametrize("kind", SETS)
@given(seed=SEEDS)
def test_hard_problems_end_feasible_and_no_worse_than_the_start(kind, seed):
    case = random_case(seed, sets=(kind,))
    solution = solve(case.problem, EXACT, max_iterations=60)
    start = case.problem.objective(case.problem.polytope.round(case.problem.score(case.problem.default_start)))
    noise = 1e-12 * magnitude(case.problem.weight, case.problem.gram)
    assert case.rule.feasible(solution.mask), case.label
    assert violation(case.rule, solution.relaxed_mask) <= 1e-8, case.label
    assert solution.relaxed_objective <= start + noise, case.label
    assert solution.lower_bound <= solution.objective, case.label


def test_float32_keeps_counts_over_many_iterations():
    for name in ("row", "2:4", "row at most"):
        problem, rule = layer(name, seed=3, dtype=torch.float32)
        solution = solve(problem, DICG(), gap_tolerance=1e-12, max_iterations=500, polish=None)
        value, gap = value_and_gap(problem, rule, solution.relaxed_mask)
        assert violation(rule, solution.relaxed_mask) <= 1e-4 and abs(gap) <= 1e-3 * value, name


@pytest.mark.parametrize("iterations", [1, 9, 40, 120])
def test_reported_products_are_the_products_done(iterations):
    for name in ("row", "layer", "2:4"):
        problem, _ = layer(name)
        with counted(problem.shape[0]) as products:
            solution = solve(problem, DICG(), max_iterations=iterations, polish=None)
        assert solution.stats.products == pytest.approx(products.done), name
        assert solution.stats.iterations <= iterations


def test_solving_in_blocks_of_rows_gives_the_same_minimum():
    problem, _ = layer("2:4", seed=7)
    whole = solve(problem, EXACT, polish=None)
    parts = solve(problem, EXACT, polish=None, memory_budget_bytes=least_memory(problem, EXACT, None))
    assert parts.relaxed_objective == pytest.approx(whole.relaxed_objective, rel=1e-6)


def test_a_share_outside_zero_to_one_is_refused():
    with pytest.raises(RelaxPruneError, match="share must lie between 0 and 1, got 1"):
        DICG(share=1)


def test_a_product_that_overflows_ends_in_a_status():
    problem, rule = layer("row")
    for call in (2, 9, 30):
        with broken_at(call, float("nan")):
            solution = solve(problem, DICG(), max_iterations=60, throw=False)
        assert solution.status is Status.NOT_FINITE and rule.feasible(solution.mask)
