from __future__ import annotations

import logging

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
    TransposableNM,
    solve,
)
from relaxprune.solvers import Budget, IterativeSolver, Run, make_solver
from relaxprune.solvers.projection import admm as module
from relaxprune.solving.solving import least_memory
from tests import tiles
from tests.conftest import LONG
from tests.counting import broken_at, counted
from tests.enumeration import best_values, objective
from tests.layers import POLYTOPES, SHAPE, correlated_gram, layer
from tests.random_problems import SETS, WEIGHTS, Draw, random_case
from tests.relaxations import clarabel_minimum, value_and_gap, violation

SEEDS = st.integers(0, 2**31)
VARIANTS = ("binary", "relaxed")


def states(problem: MaskProblem, iterations: int, **options):
    """Take the solver's steps one by one, in float64, and yield its state after each."""
    solver = make_solver("admm", dtype="float64", **options)
    assert isinstance(solver, IterativeSolver)
    working = problem.working(torch.float64)
    start = problem.polytope.round(problem.score("wanda"))
    state = solver.init(working, start.double(), Budget.of(solver, Run(start=start, max_iterations=iterations)))
    for _ in range(iterations):
        solver.step(working, state)
        yield working, state


@pytest.mark.parametrize(("power", "fixed"), [(0.6, True), (0.0, False), *([(1.0, False)] if LONG else [])])
@pytest.mark.parametrize("name", POLYTOPES)
def test_the_relaxed_variant_finds_the_minimum_that_clarabel_finds(name, power, fixed):
    problem, rule = layer(name, fixed=fixed)
    options = {"variant": "relaxed", "power": power, "dtype": "float64", "polish": None}
    solution = solve(problem, "admm", gap_tolerance=1e-8, max_iterations=5000, **options)
    assert solution.status is Status.CONVERGED and solution.relaxed_mask is not None
    value, gap = value_and_gap(problem, rule, solution.relaxed_mask)
    assert gap <= 1.01e-8 * value and violation(rule, solution.relaxed_mask) <= 1e-9
    assert value == pytest.approx(clarabel_minimum(problem, rule), rel=1e-6)
    assert rule.feasible(solution.mask) and solution.lower_bound <= value * (1 + 1e-12)


def test_weights_and_inputs_of_zero_are_no_obstacle():
    """Where w = 0 the residual is fixed at 0, which takes a dual that is no multiple of w."""
    problem, rule = layer("row")
    weight, gram = problem.weight.clone(), problem.gram.clone()
    weight[:, ::5] = 0
    weight[2, 1::3] = 0
    gram[3], gram[:, 3] = 0, 0
    problem = MaskProblem(weight, gram, problem.polytope)
    options = {"variant": "relaxed", "dtype": "float64", "polish": None}
    solution = solve(problem, "admm", gap_tolerance=1e-8, max_iterations=5000, **options)
    assert solution.status is Status.CONVERGED
    assert solution.relaxed_objective == pytest.approx(clarabel_minimum(problem, rule), rel=1e-6)
    assert rule.feasible(solve(problem, "admm").mask)


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=SEEDS)
def test_adversarial_problems_stay_feasible_and_bounded(variant, seed):
    case = random_case(seed)
    for dtype, box in (("float32", 1e-4), ("float64", 1e-9)):
        solution = solve(case.problem, "admm", variant=variant, dtype=dtype, max_iterations=40)
        assert not solution.status.failed, case.label
        assert case.rule.feasible(solution.mask), case.label
        assert solution.lower_bound <= solution.objective, case.label
        if variant == "relaxed":
            assert violation(case.rule, solution.relaxed_mask) <= box, case.label


@pytest.mark.parametrize("kind", SETS)
def test_near_the_best_mask_of_small_problems(kind):
    """Not a promise of the method, but often far from it means that something broke: one in a hundred may be."""
    # Where all weights together cancel, keeping none may be best, and no exchange leads there.
    weights = tuple(name for name in WEIGHTS if name != "null vector")
    far, count = [], 1000 if LONG else 15
    for seed in range(count):
        case = random_case(seed, sets=(kind,), grams=("gaussian", "diagonal"), weights=weights)
        best = float(best_values(case.problem.weight, case.problem.gram, case.rule).sum())
        if solve(case.problem, "admm").objective > 2 * best + 1e-9 * case.problem.dense_energy:
            far.append(case.label)
    assert len(far) <= count // 100, far


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", POLYTOPES)
def test_the_binary_variant_takes_only_masks_and_keeps_the_best(name, fixed):
    problem, rule = layer(name, fixed=fixed)
    start = problem.polytope.round(problem.score("wanda"))
    seen = [problem.block_objective(start)]
    for _, state in states(problem, 60):
        assert rule.feasible(state.mask.bool()) and bool(((state.mask == 0) | (state.mask == 1)).all())
        if state.iteration % 10 == 0:
            seen.append(problem.block_objective(state.mask.bool()))
            assert torch.allclose(problem.block_objective(state.best.bool()), torch.stack(seen).amin(dim=0))
    solution = solve(problem, "admm", polish=None)
    assert solution.objective <= objective(problem.weight, problem.gram, start)
    assert solution.relaxed_mask is None
    assert solve(problem, "admm").objective <= solution.objective


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_masks_have_converged_where_the_last_step_kept_them(seed):
    problem, _ = layer("row", seed)
    masks = [state.mask.clone() for _, state in states(problem, 60)]
    solution = solve(problem, "admm", dtype="float64", max_iterations=60, polish=None)
    kept = torch.equal(masks[-1], masks[-2])
    assert solution.status is (Status.CONVERGED if kept else Status.ITERATION_LIMIT)


def test_its_masks_are_good_ones():
    for name in POLYTOPES:
        problem, _ = layer(name, seed=2)
        binary, relaxed = (solve(problem, "admm", variant=variant) for variant in VARIANTS)
        assert binary.objective <= 1.1 * solve(problem, "fw").objective, name
        assert relaxed.objective < solve(problem, "wanda").objective, name


def test_the_masks_step_is_the_exact_minimiser():
    """Of Σ w² (m − t)² over the masks of the set, t = 1 − (r + u) / w: all of them are looked at."""
    case = random_case(5, sets=("row",), grams=("gaussian",))
    expected, target = None, torch.zeros(())
    for _, state in states(case.problem, 30):
        if expected is not None:
            taken = (state.size * (state.mask - target).square()).sum(dim=1)
            assert torch.allclose(taken, expected)
        residual = state.shifted.solve(state.weight * (1 - state.mask) - state.dual)
        target = 1 - (residual + state.dual) / state.weight
        masks = [torch.from_numpy(block[:, 0].astype(float)) for block in case.rule.blocks]
        costs = [(q * (block - t).square()).sum(dim=1) for q, block, t in zip(state.size, masks, target, strict=True)]
        expected = torch.stack([cost.amin() for cost in costs])


def test_a_factorisation_of_the_shifted_gram_solves_every_row():
    problem, _ = layer("row")
    for _, state in states(problem, 1):
        shifted = state.shifted
        right = torch.randn(*SHAPE, dtype=torch.float64)
        identity = torch.eye(SHAPE[1], dtype=torch.float64)
        expected = torch.linalg.solve(shifted.factors.gram + shifted.rho * identity, shifted.rho * right.T).T
        assert torch.allclose(shifted.solve(right), expected)
        # The scaled problem is the same problem: w G w is unchanged but for a factor.
        ratio = (torch.outer(state.weight[0], state.weight[0]) * shifted.factors.gram) / (
            torch.outer(problem.weight[0], problem.weight[0]) * problem.gram
        )
        assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))


def test_rho_rises_for_masks_and_follows_the_residuals_for_the_relaxation():
    problem, _ = layer("row")
    rising = [state.shifted.rho for _, state in states(problem, 100)]
    assert rising == sorted(rising) and len(set(rising)) == 20
    assert rising[0] == pytest.approx(0.1) and rising[-1] == pytest.approx(0.9)
    for rho in (1e-3, 1e3):
        found = [state.shifted.rho for _, state in states(problem, 400, variant="relaxed", rho=rho)]
        assert abs(torch.tensor(found[-1]).log10()) < 2, "a rho that is far off is not mended"
        assert len(set(found[200:])) == 1, "rho must rest in the second half"


def test_few_iterations_are_enough_for_all_values_of_rho_to_be_tried_or_not():
    problem, rule = layer("row")
    for iterations in (1, 2, 5, 19, 20, 21, 33):
        solution = solve(problem, "admm", max_iterations=iterations)
        assert solution.stats.iterations == iterations and rule.feasible(solution.mask)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("small", [False, True])
def test_products_are_those_done_and_what_factorisations_amount_to(variant, small, monkeypatch):
    problem, _ = layer("row")
    amounts: list[float] = []
    fresh: list[float] = []
    take, factorise = module.Shifted.set, module.Factors.factorise

    def took(self, working, rho):
        fresh.clear()
        result = take(self, working, rho)
        rows, cols = working.shape
        amounts.extend(-(-cols // (2 * rows)) * rows / SHAPE[0] for _ in fresh)
        return result

    def factorised(self, rho):
        fresh.append(rho)
        return factorise(self, rho)

    monkeypatch.setattr(module.Shifted, "set", took)
    monkeypatch.setattr(module.Factors, "factorise", factorised)
    budget = least_memory(problem, "admm", variant=variant) if small else None
    for iterations in (1, 10, 75):
        amounts.clear()
        with counted(SHAPE[0]) as products:
            solution = solve(problem, "admm", variant=variant, max_iterations=iterations, memory_budget_bytes=budget)
        assert amounts and solution.stats.products == pytest.approx(products.done + sum(amounts))


@pytest.mark.parametrize(("room", "count"), [(64 * 2**20, 20), (5 * 24 * 24 * 4, 5 + 15 * 6), (0, 1 + 19 * 6)])
def test_blocks_of_rows_share_the_factorisations_that_fit(room, count, monkeypatch):
    problem, _ = layer("row")
    calls: list[float] = []
    original = module.Factors.factorise

    def factorised(self, rho):
        calls.append(rho)
        return original(self, rho)

    monkeypatch.setattr(module.Factors, "factorise", factorised)
    monkeypatch.setattr(module, "_LEAST_BYTES", room)
    split = solve(problem, "admm", polish=None, memory_budget_bytes=least_memory(problem, "admm", None))
    assert len(calls) == count
    calls.clear()
    whole = solve(problem, "admm", polish=None)
    assert len(calls) == 20 and torch.equal(split.mask, whole.mask)


def test_an_indefinite_gram_is_damped_and_said(caplog):
    """Eigenvalues down to -1e-3 of the diagonal are accepted at the door; a small rho may not lift them."""
    size = 24
    gram = torch.full((size, size), 1.0 + 4e-4, dtype=torch.float64)
    gram.diagonal().fill_(1.0)
    problem = MaskProblem(Draw(1).normal(*SHAPE), gram, KSparse(12))
    with caplog.at_level(logging.WARNING, logger="relaxprune"):
        solution = solve(problem, "admm", variant="relaxed", rho=1e-6, power=0.0, max_iterations=50)
    assert "is indefinite" in caplog.text and not solution.status.failed
    assert solution.lower_bound <= solution.objective


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("call", [1, 7, 15])
def test_leaving_the_finite_numbers_is_a_status(variant, value, call):
    problem, rule = layer("row")
    options = {"variant": variant, "max_iterations": 100}
    if variant == "relaxed":
        options["gap_tolerance"] = 1e-9
    with broken_at(call, value), pytest.raises(FloatingPointError, match="left the finite numbers"):
        solve(problem, "admm", **options)
    with broken_at(call, value):
        solution = solve(problem, "admm", throw=False, **options)
    assert solution.status is Status.NOT_FINITE and rule.feasible(solution.mask)


def test_transposable_masks_need_only_the_linear_oracle():
    draw = Draw(3)
    problem = MaskProblem(draw.normal(8, 16), correlated_gram(16, draw), TransposableNM(2, 4))
    solution = solve(problem, "admm")
    assert tiles.feasible(solution.mask, 4, 2) and solution.objective < solve(problem, "wanda").objective
    with pytest.raises(RelaxPruneError, match=r"variant='relaxed' needs a projection, which a transposable.* or fw"):
        solve(problem, "admm", variant="relaxed")


def test_a_problem_without_weight_and_gram_is_refused():
    problem = QuadraticProblem(torch.eye(6), torch.zeros(2, 6), KSparse(2))
    words = r"solver 'admm' needs the weight and the Gram matrix .* QuadraticProblem; use fw"
    with pytest.raises(RelaxPruneError, match=words):
        solve(problem, "admm")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "both"}, "variant must be one of binary, relaxed, got 'both'"),
        ({"rho": 0.0}, "rho must lie in"),
        ({"rho": float("nan")}, "rho must be a finite number"),
        ({"power": 2.0}, "power must lie in [0, 1], got 2.0"),
        ({"power": "half"}, "power"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_options_that_cannot_be_right_are_refused(options, words):
    with pytest.raises(RelaxPruneError) as refused:
        make_solver("admm", **options)
    assert words in str(refused.value) and "\n" not in str(refused.value)
