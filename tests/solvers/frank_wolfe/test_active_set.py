"""The three solvers with an explicit active set, and the set itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import KSparse, MaskProblem, Status, solve
from relaxprune.problems import RelaxPruneError
from relaxprune.solvers import Budget, Run
from relaxprune.solvers.frank_wolfe.away_step import AwayStep
from relaxprune.solvers.frank_wolfe.blended_pairwise import BlendedPairwise
from relaxprune.solvers.frank_wolfe.engine.active_set import ActiveSet
from relaxprune.solvers.frank_wolfe.engine.vertex_moves import ActiveSetSolver
from relaxprune.solvers.frank_wolfe.pairwise import Pairwise
from tests.counting import broken_at, counted
from tests.enumeration import Rule, magnitude
from tests.layers import POLYTOPES, correlated_gram, layer
from tests.random_problems import SETS, Draw, random_case
from tests.relaxations import clarabel_minimum, value_and_gap, violation

SEEDS = st.integers(0, 2**31)
SOLVERS = [AwayStep, Pairwise, BlendedPairwise]
solvers = pytest.mark.parametrize("kind", SOLVERS)


def steps(problem: MaskProblem, solver: ActiveSetSolver, iterations: int):
    """Take the solver's steps one by one and yield the working problem and the state after each."""
    working = problem.working(torch.float64)
    start = problem.polytope.round(problem.score("wanda"))
    state = solver.init(working, start.double(), Budget.of(solver, Run(start=start, max_iterations=iterations)))
    yield working, state
    for iteration in range(1, iterations + 1):
        solver.step(working, state)
        if iteration % 10 == 0:
            solver.done(working, state)
        yield working, state


@solvers
@pytest.mark.parametrize("name", POLYTOPES)
def test_finds_the_minimum_of_the_relaxation(kind, name):
    problem, rule = layer(name, fixed=name != "layer at most")
    tolerance = 0.3 if name.startswith("layer") else 0.05  # one step for all rows together is slow
    solution = solve(problem, kind(dtype="float64"), gap_tolerance=tolerance, max_iterations=1500, polish=None)
    value, gap = value_and_gap(problem, rule, solution.relaxed_mask)
    assert -1e-9 * value <= gap <= 1.001 * tolerance * value and violation(rule, solution.relaxed_mask) <= 1e-9
    assert solution.status in (Status.CONVERGED, Status.OPTIMAL)


def small(seed: int) -> tuple[MaskProblem, Rule]:
    """Three rows of ten columns."""
    draw = Draw(seed)
    return MaskProblem(draw.normal(3, 10), correlated_gram(10, draw), KSparse(5)), Rule.groups((3, 10), 5, 10)


@solvers
def test_reaches_a_gap_that_plain_frank_wolfe_does_not(kind):
    problem, rule = small(8)
    budget = {"gap_tolerance": 1e-6, "max_iterations": 3000, "polish": None}
    solution = solve(problem, kind(dtype="float64"), **budget)
    value, gap = value_and_gap(problem, rule, solution.relaxed_mask)
    plain = solve(problem, "fw", anneal=False, dtype="float64", **budget)
    assert gap <= 1.01e-6 * value and solution.status is Status.CONVERGED
    assert plain.status is Status.ITERATION_LIMIT
    assert value == pytest.approx(clarabel_minimum(problem, rule), rel=1e-5)


@solvers
def test_reaches_a_relative_gap_of_a_millionth(kind, long_run):
    draw, rows = Draw(0), 24 if long_run else 8
    inputs = draw.normal(400, 64)  # badly conditioned inputs take 100 times as many steps
    problem = MaskProblem(draw.normal(rows, 64), inputs.T @ inputs / 400, KSparse(32))
    budget = {"gap_tolerance": 1e-6, "max_iterations": 5000, "polish": None}
    solution = solve(problem, kind(dtype="float64"), **budget)
    value, gap = value_and_gap(problem, Rule.groups((rows, 64), 32, 64), solution.relaxed_mask)
    assert solution.status is Status.CONVERGED and gap <= 1.01e-6 * value
    assert value == pytest.approx(solve(problem, "dicg", dtype="float64", **budget).relaxed_objective, rel=1e-6)


@solvers
@pytest.mark.parametrize("name", ["row", "layer at most", "2:4"])
def test_the_active_set_always_combines_to_the_point(kind, name):
    problem, rule = layer(name, seed=1, fixed=True)
    last = None
    for working, state in steps(problem, kind(dtype="float64"), 120):
        active = state.active
        weights = active.weights
        assert bool((weights >= 0).all()) and torch.allclose(weights.sum(dim=0), torch.ones(state.blocks).double())
        mixed = torch.einsum("sb,sbe->be", weights, active.vertices.double()).view(state.mask.shape)
        assert torch.allclose(mixed, state.mask, atol=1e-10)
        assert torch.allclose(state.half_gradient, working.half_gradient(state.mask), rtol=1e-8, atol=1e-8)
        value = working.polytope.block_sum(working.row_value(state.mask, state.half_gradient))
        assert last is None or bool((value <= last + 1e-12 * last.abs() + 1e-12).all())
        last = value
    for block in range(state.blocks):
        lines = active.vertices[:, block][weights[:, block] > 0]
        assert len(torch.unique(lines, dim=0)) == len(lines), "a vertex is stored twice"
        for line in lines if state.blocks == 1 else []:
            assert rule.feasible(line.view(rule.shape))


@solvers
def test_drop_steps_shrink_the_set(kind):
    """Sizes fall as well as rise, a drop lowers the size by one, and the memory is given back."""
    problem, _ = small(2)
    before, drops = None, 0
    for _, state in steps(problem, kind(dtype="float64"), 1000):
        sizes = state.active.sizes()
        if before is not None:
            assert bool(((sizes - before) <= 1).all())
            drops += int((sizes < before).sum())
        before = sizes
    assert drops >= 5
    # Ten columns need no more than ten vertices (Carathéodory), and a thousand steps leave few beyond.
    assert int(before.max()) <= 20
    assert len(state.active.weights) <= 64


def test_a_start_far_from_the_face_of_the_minimum_is_dropped():
    """From a bad vertex all three must forget where they began."""
    problem, _ = layer("row", seed=3)
    worst = problem.polytope.round(-problem.score("wanda"))
    for kind in SOLVERS:
        solver = kind(dtype="float64")
        working = problem.working(torch.float64)
        state = solver.init(working, worst.double(), Budget.of(solver, Run(start=worst, max_iterations=300)))
        for _ in range(300):
            solver.step(working, state)
        held = (state.active.vertices == worst).all(dim=2) & (state.active.weights > 0)
        assert not bool(held.any()), kind.name


def test_slots_are_used_again_and_memory_is_given_back():
    active = ActiveSet(torch.eye(4)[:2], 10**6)
    everyone = torch.ones(2, dtype=torch.bool)
    for number in range(200):
        vertex = torch.tensor([[number >> bit & 1 for bit in range(8)][:4], [1, 1, number % 2, 0]]).float()
        slot = active.slot_of(vertex, everyone)
        assert torch.equal(active.at(slot), vertex)
        active.weights.zero_()
        active.weights[slot, torch.arange(2)] = 1.0
        active.trim()
    assert active.sizes().tolist() == [1, 1] and len(active.weights) == 32


def test_a_vertex_that_is_active_keeps_its_slot():
    active = ActiveSet(torch.eye(3)[:1], 10**6)
    again = active.slot_of(torch.eye(3)[:1], torch.tensor([True]))
    new = active.slot_of(torch.eye(3)[1:2], torch.tensor([True]))
    assert again.item() == 0 and new.item() == 1


@pytest.mark.parametrize("kind", SETS)
@given(seed=SEEDS)
def test_hard_problems_end_feasible_and_no_worse_than_the_start(kind, seed):
    case = random_case(seed, sets=(kind,))
    start = case.problem.objective(case.problem.polytope.round(case.problem.score(case.problem.default_start)))
    solution = solve(case.problem, SOLVERS[seed % 3](dtype="float64"), max_iterations=60)
    assert case.rule.feasible(solution.mask), case.label
    assert violation(case.rule, solution.relaxed_mask) <= 1e-8, case.label
    assert solution.relaxed_objective <= start + 1e-12 * magnitude(case.problem.weight, case.problem.gram), case.label


@solvers
@pytest.mark.parametrize("iterations", [1, 40, 120])
def test_reported_products_are_the_products_done(kind, iterations):
    for name in ("row", "layer"):
        problem, _ = layer(name)
        with counted(problem.shape[0]) as products:
            solution = solve(problem, kind(), max_iterations=iterations, polish=None)
        assert solution.stats.products == pytest.approx(products.done), name


def test_a_coupled_block_too_large_for_its_first_vertices_is_refused_with_the_number():
    problem, _ = layer("layer")
    with pytest.raises(RelaxPruneError, match=r"active_bytes is 1000, but .* take 4608 bytes; .*dicg"):
        Pairwise(active_bytes=1000).check(problem)
    with pytest.raises(RelaxPruneError, match="active_bytes must be a whole number of at least 1, got 0"):
        AwayStep(active_bytes=0)


@solvers
def test_an_active_set_that_fills_its_memory_ends_in_a_status_with_the_last_iterate(kind):
    problem, rule = layer("layer")
    options = {"gap_tolerance": 1e-9, "max_iterations": 2000, "polish": None}
    solution = solve(problem, kind(dtype="float64", active_bytes=5000), throw=False, **options)
    assert solution.status is Status.MEMORY_LIMIT and not solution.status.failed
    assert 31 <= solution.stats.iterations < 2000
    assert rule.feasible(solution.mask) and violation(rule, solution.relaxed_mask) <= 1e-9
    assert solution.relaxed_objective < problem.objective(problem.polytope.round(problem.score("wanda")))
    ample = solve(problem, kind(dtype="float64"), **{**options, "max_iterations": solution.stats.iterations})
    assert solution.relaxed_objective == pytest.approx(ample.relaxed_objective)


@solvers
def test_rows_are_split_so_that_their_active_sets_fit(kind, monkeypatch):
    """A vertex per iteration of one row fits into the limit, those of all rows together do not."""
    problem, _ = layer("row")
    limit = 152 * problem.shape[1]
    most = []
    original = ActiveSet.ready

    def watched(self):
        room = original(self)
        most.append(self.vertices.numel())
        return room

    monkeypatch.setattr(ActiveSet, "ready", watched)
    options = {"gap_tolerance": 1e-6, "max_iterations": 150, "polish": None}
    ample = solve(problem, kind(dtype="float64"), **options)
    most.clear()
    solution = solve(problem, kind(dtype="float64", active_bytes=limit), **options)
    assert solution.status is ample.status is Status.ITERATION_LIMIT and max(most) <= limit
    assert solution.relaxed_objective == pytest.approx(ample.relaxed_objective, rel=1e-2)


@solvers
def test_more_rows_than_the_first_vertices_fit_for_are_no_obstacle(kind):
    problem, rule = layer("row")
    limit = 32 * problem.shape[1]
    solution = solve(problem, kind(active_bytes=limit), max_iterations=20)
    assert rule.feasible(solution.mask) and solution.status is Status.ITERATION_LIMIT


@solvers
def test_a_product_that_overflows_ends_in_a_status(kind):
    problem, rule = layer("row")
    for call in (2, 9, 30):
        with broken_at(call, float("nan")):
            solution = solve(problem, kind(), max_iterations=60, throw=False)
        assert solution.status is Status.NOT_FINITE and rule.feasible(solution.mask)
