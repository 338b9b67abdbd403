from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import KSparse, MaskProblem, RelaxPruneError, Solution, Status, solve
from relaxprune.problems import Face, Problem
from relaxprune.solvers import Answer, Run, Solver
from relaxprune.solving.solving import least_memory
from tests.enumeration import Rule, best_values, magnitude, objective, swap_gain
from tests.layers import POLYTOPES, SHAPE, layer
from tests.random_problems import SETS, Draw, make_gram, random_case

SEEDS = st.integers(0, 2**31)
# The others have sizes that they refuse; the conformance suite holds them to the same.
SOLVERS = ("fw", "sparsefw", "swap", "wanda", "ria", "magnitude")


def check_invariants(problem: MaskProblem, solution: Solution, rule: Rule) -> None:
    """What every Solution promises, whatever the solver."""
    assert solution.mask.dtype == torch.bool and rule.feasible(solution.mask)
    noise = 1e-13 * magnitude(problem.weight, problem.gram)
    by_hand = objective(problem.weight, problem.gram, solution.mask)
    assert solution.objective == pytest.approx(by_hand, rel=1e-12, abs=noise)
    assert solution.block_objective.dtype == solution.block_lower_bound.dtype == torch.float64
    blocks = (problem.polytope.block_count(problem.shape),)
    assert solution.block_objective.shape == blocks and solution.block_lower_bound.shape == blocks
    assert solution.objective == pytest.approx(float(solution.block_objective.sum()), rel=1e-12, abs=noise)
    assert solution.lower_bound == pytest.approx(float(solution.block_lower_bound.sum()), rel=1e-12, abs=noise)
    assert bool((solution.block_lower_bound <= solution.block_objective).all())
    assert solution.gap == max(0.0, solution.objective - solution.lower_bound)
    if solution.objective > 0:
        assert solution.relative_gap == pytest.approx(solution.gap / solution.objective)
    if problem.dense_energy > 0:
        assert solution.relative_error == pytest.approx(by_hand / problem.dense_energy, rel=1e-9, abs=1e-12)
    else:  # an indefinite Gram can make f(0) negative: there is nothing to divide by
        assert solution.relative_error == 0.0
    if solution.relaxed_mask is not None:
        relaxed = problem.objective(solution.relaxed_mask)
        assert solution.relaxed_objective == pytest.approx(relaxed, rel=1e-9, abs=noise)
    if solution.unrounded_objective is None:
        assert solution.rounding_loss is None
    else:
        assert solution.rounded_objective is not None
        assert solution.rounding_loss == solution.rounded_objective - solution.unrounded_objective
    assert solution.stats.seconds > 0 and solution.stats.products >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", POLYTOPES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_on_every_set(solver, name, fixed, dtype):
    problem, rule = layer(name, seed=7, dtype=dtype, fixed=fixed)
    iterations = 25 if solver in ("fw", "sparsefw") else None
    solution = solve(problem, solver, max_iterations=iterations)
    check_invariants(problem, solution, rule)
    assert solution.solver == solver
    if solution.polish == "swap" or solver == "swap":
        assert swap_gain(problem.weight, problem.gram, rule, solution.mask) <= 1e-9


@pytest.mark.parametrize("kind", SETS)
@given(seed=SEEDS, solver=st.sampled_from(SOLVERS))
def test_invariants_on_adversarial_problems(kind, seed, solver):
    case = random_case(seed, sets=(kind,))
    solution = solve(case.problem, solver, max_iterations=15 if solver in ("fw", "sparsefw") else None)
    check_invariants(case.problem, solution, case.rule)
    if solution.status is Status.OPTIMAL:
        noise = 1e-13 * magnitude(case.problem.weight, case.problem.gram)
        best = float(best_values(case.problem.weight, case.problem.gram, case.rule).sum())
        assert solution.objective <= best + 2e-9 * abs(best) + noise, case.label


@given(seed=SEEDS)
def test_the_default_ends_one_swap_optimal(seed):
    case = random_case(seed)
    solution = solve(case.problem)
    assert swap_gain(case.problem.weight, case.problem.gram, case.rule, solution.mask) <= 1e-9, case.label


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("per", ["row", "layer"])
@pytest.mark.parametrize("at_most", [False, True])
def test_keep_nothing_and_keep_everything(solver, per, at_most):
    draw = Draw(1)
    weight, gram = draw.normal(3, 6), make_gram("gaussian", 6, draw)
    everything = KSparse(6 if per == "row" else 18, per, at_most)
    options: dict[str, Any] = {"max_iterations": 20} if solver in ("fw", "sparsefw") else {}
    full = solve(MaskProblem(weight, gram, everything), solver, **options)
    if not at_most or solver != "sparsefw":
        assert full.mask.all() and full.objective == full.lower_bound == full.relative_gap == 0.0
        assert full.status is Status.OPTIMAL
    empty = solve(MaskProblem(weight, gram, KSparse(0, per, at_most)), solver, **options)
    assert not empty.mask.any() and empty.relative_error == pytest.approx(1.0)
    assert empty.relative_gap == pytest.approx(0.0, abs=1e-9) and empty.status is Status.OPTIMAL


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", POLYTOPES)
def test_nothing_to_choose_between(solver, name):
    """A zero Gram, zero weights, all-tied weights over a diagonal Gram: valid, and the gap of nothing is nothing."""
    polytope, rule = POLYTOPES[name]
    options: dict[str, Any] = {"max_iterations": 20} if solver in ("fw", "sparsefw") else {}
    for weight, gram in ((torch.ones(SHAPE), torch.zeros(24, 24)), (torch.zeros(SHAPE), torch.eye(24))):
        problem = MaskProblem(weight, gram, polytope)
        solution = solve(problem, solver, **options)
        check_invariants(problem, solution, rule)
        assert solution.objective == solution.gap == solution.relative_gap == solution.relative_error == 0.0
    tied = MaskProblem(torch.ones(SHAPE), torch.eye(24), polytope)
    solution = solve(tied, solver, polish="swap", **options)
    assert solution.objective == pytest.approx(24 * 6 - polytope.kept(SHAPE))


def test_a_diagonal_gram_makes_wanda_optimal():
    draw = Draw(2)
    problem = MaskProblem(draw.normal(4, 8), make_gram("diagonal", 8, draw), KSparse(4))
    best = float(best_values(problem.weight, problem.gram, Rule.groups((4, 8), 4, 8)).sum())
    assert solve(problem, "wanda").objective == pytest.approx(best, rel=1e-12)
    assert solve(problem).objective == pytest.approx(best, rel=1e-12)


def test_dead_inputs_are_never_kept_for_a_live_one():
    draw = Draw(3)
    gram = make_gram("gaussian", 8, draw)
    gram[[1, 5]], gram[:, [1, 5]] = 0, 0
    weight = draw.normal(4, 8)
    weight[:, [1, 5]] = 1e6
    for solver in ("fw", "swap", "wanda", "ria"):
        assert not solve(MaskProblem(weight, gram, KSparse(6)), solver).mask[:, [1, 5]].any(), solver


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", POLYTOPES)
def test_the_same_call_gives_the_same_bits(solver, name, device):
    problem, _ = layer(name, dtype=torch.float32)
    problem = MaskProblem(problem.weight.to(device), problem.gram.float().to(device), problem.polytope)
    options: dict[str, Any] = {"max_iterations": 60} if solver in ("fw", "sparsefw") else {}
    one, other = solve(problem, solver, **options), solve(problem, solver, **options)
    assert torch.equal(one.mask, other.mask) and one.objective == other.objective
    assert one.lower_bound == other.lower_bound and one.stats.products == other.stats.products
    if one.relaxed_mask is not None and other.relaxed_mask is not None:
        assert torch.equal(one.relaxed_mask, other.relaxed_mask)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", POLYTOPES)
@pytest.mark.parametrize(("weight_scale", "gram_scale"), [(1e-6, 1e6), (1e6, 1e6), (1, 1e-40), (1, 1e40)])
def test_scale_changes_nothing(solver, name, weight_scale, gram_scale):
    problem, _ = layer(name, dtype=torch.float32)
    options: dict[str, Any] = {"max_iterations": 60} if solver in ("fw", "sparsefw") else {}
    plain = solve(problem, solver, **options)
    gram = problem.gram.double() * gram_scale
    scaled_problem = MaskProblem(problem.weight * weight_scale, gram, problem.polytope)
    scaled = solve(scaled_problem, solver, **options)
    assert torch.equal(scaled.mask, plain.mask)
    factor = weight_scale**2 * gram_scale
    assert scaled.objective == pytest.approx(plain.objective * factor, rel=1e-5)
    assert scaled.lower_bound == pytest.approx(plain.lower_bound * factor, rel=1e-3)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_a_power_of_two_changes_not_one_bit(scale):
    problem, _ = layer("row", dtype=torch.float32)
    plain = solve(problem, polish=None)
    other = solve(MaskProblem(problem.weight, problem.gram * scale**2, problem.polytope), polish=None)
    assert torch.equal(other.mask, plain.mask) and other.objective == plain.objective * scale**2


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", POLYTOPES)
def test_the_order_of_rows_does_not_matter(solver, name):
    problem, _ = layer(name)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    options: dict[str, Any] = {"max_iterations": 60, "dtype": "float64"} if solver in ("fw", "sparsefw") else {}
    plain = solve(problem, solver, **options)
    moved = solve(MaskProblem(problem.weight[order], problem.gram, problem.polytope), solver, **options)
    if problem.polytope.rows_per_block(problem.shape) == len(order):
        # A descent across rows pairs them in the order of their gains, and equal gains in the order of the rows.
        assert moved.objective == pytest.approx(plain.objective, rel=0.03)
    else:
        assert torch.equal(moved.mask, plain.mask[order])


@pytest.mark.parametrize("name", POLYTOPES)
def test_a_tiny_memory_budget_gives_the_same_answer(name):
    problem, rule = layer(name, seed=8)
    whole, split = solve(problem), solve(problem, memory_budget_bytes=least_memory(problem))
    check_invariants(problem, split, rule)
    assert split.objective == pytest.approx(whole.objective, rel=0.005)
    assert split.lower_bound == pytest.approx(whole.lower_bound, rel=0.005)


def test_the_polish_only_improves_and_is_reported():
    problem, _ = layer("row")
    plain = solve(problem, anneal=False, polish=None)
    polished = solve(problem, anneal=False)
    assert plain.polish is None and polished.polish == "swap"
    assert polished.rounded_objective == plain.objective and polished.objective < plain.objective
    assert polished.stats.swaps > 0 and plain.stats.swaps == 0
    assert polished.unrounded_objective == plain.unrounded_objective


def test_the_start_may_be_a_mask_and_is_not_written_to():
    problem, _ = layer("row")
    start = problem.polytope.round(Draw(5).uniform(0, 1, *SHAPE))
    before = start.clone()
    solve(problem, start=start)
    assert torch.equal(start, before)
    for name in ("wanda", "ria", "magnitude", None):
        assert solve(problem, start=name).objective > 0


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_and_gram_are_not_written_to(solver, dtype):
    problem, _ = layer("row")
    weight, gram = problem.weight.to(dtype), problem.gram.to(dtype)
    before = weight.clone(), gram.clone()
    start = {"start": "ria"} if solver in ("fw", "sparsefw", "swap") else {}
    solve(MaskProblem(weight, gram, problem.polytope), solver, **start)
    assert torch.equal(weight, before[0]) and torch.equal(gram, before[1])


def test_a_solution_shows_its_numbers():
    problem, _ = layer("row")
    solution = solve(problem)
    assert "tensor" not in repr(solution) and "relative_gap" in repr(solution)
    assert set(solution.stats.to_dict()) == {"iterations", "products", "swap_rounds", "swaps", "seconds"}
    assert solution.options["anneal"] is True and solution.options["dtype"] == "float32"


def test_a_claim_of_optimality_is_never_made_over_an_open_gap():
    """A Gram that is only nearly PSD has masks below zero: no claim from a ratio that cannot be formed."""
    gram = torch.eye(6, dtype=torch.float64)
    gram[0, 1] = gram[1, 0] = gram[2, 3] = gram[3, 2] = -1.0003
    problem = MaskProblem(torch.tensor([[1.0, 1, 10, 10, 0.1, 0.1]]).double(), gram, KSparse(4))
    start = torch.tensor([[False, False, True, True, True, True]])
    better = torch.tensor([[True, True, False, False, True, True]])
    solution = solve(problem, "swap", start=start, max_iterations=1)
    assert torch.equal(solution.mask, start)
    assert problem.objective(better) < solution.objective < 0
    assert solution.lower_bound <= problem.objective(better)
    assert solution.gap > 0
    assert solution.status is not Status.OPTIMAL


def test_only_a_search_of_all_masks_may_call_its_mask_optimal():
    @dataclass(frozen=True)
    class Boasting(Solver):
        name: ClassVar[str] = "boasting"
        summary: ClassVar[str] = "claims what it cannot know"

        def run(self, problem: Problem, run: Run) -> Answer:
            return Answer(run.start, status=Status.OPTIMAL)

    problem, _ = layer("row")
    assert solve(problem, Boasting(), polish=None).status is Status.CONVERGED
    small = MaskProblem(problem.weight[:2, :8], problem.gram[:8, :8], KSparse(4))
    best = solve(small, "enumerate")
    assert best.status is Status.OPTIMAL and best.relative_gap > 0


def test_a_zero_objective_is_not_called_optimal_where_less_is_possible():
    """With a Gram that is not proven PSD, pruning two opposite inputs gives less than keeping everything."""
    gram = torch.tensor([[1.0, -1.0004], [-1.0004, 1.0]], dtype=torch.float64)
    problem = MaskProblem(torch.ones(1, 2).double(), gram, KSparse(2, at_most=True))
    everything = torch.tensor([[True, True]])
    assert problem.objective(~everything) < 0
    solution = solve(problem, "swap", start=everything)  # no single move helps
    assert torch.equal(solution.mask, everything) and solution.objective == 0.0 and solution.lower_bound < 0
    assert solution.status is not Status.OPTIMAL


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"solver": "annealed"}, "solver is 'annealed'; known solvers are"),
        ({"solver": "sawp"}, "did you mean 'swap'?"),
        ({"step": 3}, "solver 'fw' has no option 'step'"),
        ({"max_iteration": 3}, "neither an argument nor an option of the solver; did you mean 'max_iterations'?"),
        ({"efort": "fast"}, "solver 'fw' has no option 'efort'; did you mean 'effort'?"),
        (
            {"start": "wandda"},
            "start must be one of auto, magnitude, wanda, ria, savings, a mask or None, got 'wandda'; did you mean",
        ),
        ({"start": 3}, "start must be one of"),
        ({"start": torch.ones(SHAPE)}, "start must be a bool mask of shape (6, 24), got torch.float32"),
        ({"start": torch.ones(6, 23, dtype=torch.bool)}, "start must be a bool mask of shape (6, 24)"),
        ({"start": torch.ones(SHAPE, dtype=torch.bool)}, "start must lie in KSparse(keep=12"),
        ({"polish": "sand"}, "polish must be one of auto, swap, obs-swap or None, got 'sand'"),
        ({"max_iterations": 0}, "max_iterations must be a whole number of at least 1, got 0"),
        ({"max_iterations": 2.5}, "max_iterations must be a whole number"),
        ({"max_iterations": True}, "max_iterations must be a whole number"),
        ({"time_limit_s": 0}, "time_limit_s must be a positive number, got 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s must be a positive number"),
        ({"time_limit_s": "soon"}, "time_limit_s must be a positive number"),
        ({"gap_tolerance": -1.0}, "gap_tolerance must be a positive number, got -1.0"),
        ({"gap_tolerance": "small"}, "gap_tolerance must be a positive number"),
        ({"memory_budget_bytes": 0}, "memory_budget_bytes must be a positive number, got 0"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(arguments, words):
    problem, _ = layer("row")
    with pytest.raises(RelaxPruneError) as refused:
        solve(problem, **arguments)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_only_a_mask_problem_can_be_solved():
    with pytest.raises(RelaxPruneError, match=r"^problem must be a .*, got Tensor"):
        wrong: Any = torch.ones(2, 2)
        solve(wrong)
    assert issubclass(RelaxPruneError, ValueError)


@pytest.mark.parametrize("kind", ["inner kept", "inner pruned"])
@pytest.mark.parametrize("solver", ["fw", "swap", "sparsefw"])
def test_a_face_of_a_face_is_respected(kind, solver):
    base, rule = layer("row")
    score = base.score("wanda").argsort(dim=1)
    kept, pruned = torch.zeros(2, *SHAPE, dtype=torch.bool)
    kept.scatter_(1, score[:, :2], True)
    pruned.scatter_(1, score[:, -2:], True)
    inner = Face(KSparse(12), kept, None) if kind == "inner kept" else Face(KSparse(12), None, pruned)
    outer: dict[str, Any] = {"fixed_pruned": pruned} if kind == "inner kept" else {"fixed_kept": kept}
    problem = MaskProblem(base.weight, base.gram, inner, **outer)
    solution = solve(problem, solver, max_iterations=30)
    assert rule.fixing(kept, pruned).feasible(solution.mask)
