from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relaxprune import NM, KSparse, MaskProblem, Status, solve
from relaxprune.solvers import Budget, IterativeSolver, Run, make_solver
from relaxprune.solving.solving import least_memory
from tests.conftest import LONG
from tests.counting import counted
from tests.enumeration import best_values
from tests.layers import POLYTOPES, correlated_gram, layer
from tests.random_problems import SETS, Draw, random_case

SEEDS = st.integers(0, 2**31)


def annealed_value(problem: MaskProblem, working, point: torch.Tensor, theta: float) -> torch.Tensor:
    """f_theta per coupled block from its definition, in the working scale: (blocks,)."""
    residual = working.weight * (1 - point)
    quadratic = ((residual @ working.gram) * residual).sum(dim=1)
    concave = (working.weight**2 * working.gram.diagonal() * point * (1 - point)).sum(dim=1)
    return problem.polytope.block_sum(quadratic + theta * concave)


def steps(problem: MaskProblem, iterations: int, **options):
    """Take the solver's steps one by one, in float64, and yield its state after each."""
    solver = make_solver("fw", dtype="float64", **options)
    assert isinstance(solver, IterativeSolver)
    working = problem.working(torch.float64)
    start = problem.polytope.round(problem.score("wanda"))
    plan = Budget.of(solver, Run(start=start, max_iterations=iterations))
    state = solver.init(working, start.double(), plan)
    for _ in range(iterations):
        before = state.point()
        solver.step(working, state)
        yield working, before, state


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", POLYTOPES)
def test_every_step_lowers_the_annealed_objective_and_stays_in_the_set(name, fixed):
    problem, _ = layer(name, fixed=fixed)
    thetas = []
    for working, before, state in steps(problem, 80):
        old = annealed_value(problem, working, before, state.theta)
        new = annealed_value(problem, working, state.point(), state.theta)
        assert bool((new <= old + 1e-12 * old.abs() + 1e-12).all())
        assert problem.polytope.contains(state.point(), 1e-9)
        thetas.append(state.theta)
    assert thetas[:16] == [0.0] * 16 and thetas[16] > 0 and thetas[-1] == 1.0 and thetas == sorted(thetas)


def test_the_carried_half_gradient_is_that_of_the_annealed_objective():
    problem, _ = layer("row")
    for working, _, state in steps(problem, 60):
        point = state.point()
        fresh = working.half_gradient(point) - state.theta * working.diagonal * (point - 0.5)
        assert torch.allclose(state.half_gradient, fresh, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", POLYTOPES)
def test_the_line_search_is_exact(name):
    """In the convex phase no point of the segment is better than the one taken."""
    problem, _ = layer(name, seed=5)
    for working, before, state in steps(problem, 8, anneal=False):
        after = state.point()
        taken = annealed_value(problem, working, after, 0.0)
        for stretch in (0.5, 0.9, 1.1):
            other = before + stretch * (after - before)
            if stretch < 1 or problem.polytope.contains(other, 1e-9):
                assert bool((annealed_value(problem, working, other, 0.0) >= taken - 1e-9 * taken.abs()).all())


@pytest.mark.parametrize("name", POLYTOPES)
def test_the_convex_phase_finds_the_minimum_of_the_relaxation(name):
    problem, _ = layer(name)
    solution = solve(problem, "fw", anneal=False, dtype="float64", max_iterations=3000, polish=None)
    assert solution.relaxed_objective is not None
    # The plain gap at a point bounds its distance to the minimum: the bound must come close to the relaxed objective.
    assert solution.lower_bound <= solution.relaxed_objective * (1 + 1e-12)
    assert solution.lower_bound == pytest.approx(solution.relaxed_objective, rel=0.05)


def test_annealing_leaves_almost_nothing_to_rounding():
    draw = Draw(2)
    weight, gram = draw.normal(24, 192), correlated_gram(192, draw)
    for polytope in (KSparse(96), NM(2, 4), KSparse(96, at_most=True)):
        problem = MaskProblem(weight, gram, polytope)
        *_, (_, _, state) = steps(problem, 250, effort="fast")
        mask = polytope.round(state.point())
        annealed, loss = problem.objective(mask), problem.objective(mask) - problem.objective(state.point())
        plain = solve(problem, "fw", anneal=False, polish=None)
        assert plain.rounding_loss is not None
        assert abs(loss) <= 0.05 * annealed, polytope
        assert loss < 0.2 * plain.rounding_loss, polytope
        assert annealed < plain.objective, polytope
        assert annealed < solve(problem, "wanda").objective, polytope


@pytest.mark.parametrize("kind", SETS)
@settings(max_examples=200 if LONG else 4)
@given(seed=SEEDS)
def test_near_the_best_mask_of_small_problems(kind, seed):
    """Not a promise of the method, which a single case may break; but far above the best something is broken."""
    excess, labels = [], []
    for number in range(4):
        case = random_case(seed + number, sets=(kind,), grams=("gaussian", "diagonal"))
        solution = solve(case.problem)
        best = float(best_values(case.problem.weight, case.problem.gram, case.rule).sum())
        energy = float((case.problem.weight.double() ** 2 * case.problem.gram.double().diagonal()).sum())
        excess.append((solution.objective - 2 * best) / energy if energy else 0.0)
        labels.append(case.label)
    assert sum(max(0.0, value) for value in excess) / 4 <= 0.1, (excess, labels)


@pytest.mark.parametrize("iterations", [1, 2, 7, 40, 120])
@pytest.mark.parametrize("polish", [None, "swap"])
def test_reported_products_are_the_products_done(iterations, polish):
    for name in ("row", "layer", "2:4"):
        problem, _ = layer(name)
        with counted(problem.shape[0]) as products:
            solution = solve(problem, "fw", max_iterations=iterations, polish=polish)
        assert solution.stats.products == pytest.approx(products.done), name
        assert solution.stats.iterations <= iterations


def test_one_product_per_iteration_and_few_more():
    problem, _ = layer("row", seed=1)
    assert solve(problem, effort="fast").stats.products <= 85


def test_products_are_counted_when_rows_are_solved_in_blocks():
    problem, _ = layer("row")
    with counted(problem.shape[0]) as products:
        solution = solve(problem, "fw", effort="fast", memory_budget_bytes=least_memory(problem, effort="fast"))
    assert solution.stats.products == pytest.approx(products.done)


def test_converged_rows_leave_the_batch():
    """Rows that are solved at once must not be multiplied for as long as the hard ones."""
    hard, _ = layer("row")
    weight = hard.weight.clone()
    weight[:4] = 0
    weight[:4, :12] = 1e3 * torch.arange(1, 13)  # the start keeps exactly these and is optimal
    problem = MaskProblem(weight, hard.gram, hard.polytope)
    solution = solve(problem, "fw", effort="fast", polish=None)
    assert solution.stats.products < 0.95 * solution.stats.iterations
    assert solution.mask[:4, :12].all() and float(solution.block_objective[:4].sum()) == 0.0


def test_a_gap_tolerance_ends_the_convex_phase_only():
    problem, _ = layer("row")
    for tolerance in (2.5, 1.2, 1.0):  # reached after 10 to 50 of the 75 iterations
        options = {"effort": "fast", "convex_share": 0.25, "max_iterations": 300}
        loose = solve(problem, "fw", gap_tolerance=tolerance, **options)
        full = solve(problem, "fw", **options)
        assert loose.stats.products < full.stats.products, tolerance
        assert loose.stats.iterations > 225
        assert loose.objective < 1.2 * full.objective
    plain = solve(problem, "fw", anneal=False, gap_tolerance=0.5, max_iterations=2000, polish=None)
    assert plain.status is Status.CONVERGED and plain.stats.iterations < 2000
    assert plain.relative_gap < 1


def test_the_warm_start_is_used():
    """With one short step the answer must still depend on where it began."""
    problem, _ = layer("row")
    best = solve(problem)
    from_best = solve(problem, start=best.mask, max_iterations=1, polish=None, anneal=False)
    from_first = solve(problem, start=None, max_iterations=1, polish=None, anneal=False)
    assert from_best.unrounded_objective is not None and from_first.unrounded_objective is not None
    assert from_best.unrounded_objective <= best.objective * (1 + 1e-5)
    assert from_best.unrounded_objective < from_first.unrounded_objective
