from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import MaskProblem, Status, TransposableNM, solve
from relaxprune.solving.solving import least_memory
from tests.layers import correlated_gram
from tests.random_problems import GRAMS, WEIGHTS, Draw, make_gram, make_weight
from tests.tiles import feasible, interchange_gain, interchanges

TOLERANCE = 1e-9
SEEDS = st.integers(0, 2**31)
PATTERNS = [(1, 2), (1, 4), (2, 4), (3, 4), (4, 8), (2, 12)]


def tiled(
    keep: int, group: int, seed: int = 0, fixed: bool = False
) -> tuple[MaskProblem, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """A (24, 24) problem, and what it fixes."""
    draw = Draw(seed)
    weight, gram = draw.normal(24, 24), correlated_gram(24, draw)
    polytope = TransposableNM(keep, group)
    kept = pruned = None
    if fixed:
        mask = polytope.round(draw.uniform(0, 1, 24, 24))
        kept, pruned = mask & draw.bits(0.3, 24, 24), ~mask & draw.bits(0.3, 24, 24)
    return MaskProblem(weight, gram, polytope, fixed_kept=kept, fixed_pruned=pruned), (kept, pruned)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("keep", "group"), PATTERNS)
def test_ends_where_no_interchange_of_all_helps(keep, group, fixed):
    problem, entries = tiled(keep, group, fixed=fixed)
    solution = solve(problem, "swap")
    assert solution.status in (Status.CONVERGED, Status.OPTIMAL)
    assert feasible(solution.mask, group, keep) and problem.polytope.contains(solution.mask)
    assert interchange_gain(problem.weight, problem.gram, group, solution.mask, entries) <= TOLERANCE
    again = solve(problem, "swap", start=solution.mask)
    assert torch.equal(again.mask, solution.mask) and again.stats.swaps == 0


@given(seed=SEEDS)
def test_ends_optimal_on_adversarial_problems(seed):
    draw = Draw(seed)
    group = draw.whole(1, 5)
    keep, shape = draw.whole(0, group), (group * draw.whole(1, 3), group * draw.whole(1, 3))
    gram = make_gram(draw.pick(GRAMS), shape[1], draw)
    weight = make_weight(draw.pick(WEIGHTS), shape, gram, draw)
    problem = MaskProblem(weight, gram, TransposableNM(keep, group))
    solution = solve(problem, "swap")
    assert feasible(solution.mask, group, keep)
    assert interchange_gain(weight, problem.gram, group, solution.mask) <= TOLERANCE


def test_the_check_itself_fails_on_a_mask_with_one_interchange():
    """Easy to fake: a checker that passes everything. One interchange away from an optimum it must say no."""
    problem, _ = tiled(2, 4)
    around = interchanges(solve(problem, "swap").mask.numpy(), 4)
    assert len(around) > 100
    for other in around[:: len(around) // 20]:
        assert interchange_gain(problem.weight, problem.gram, 4, other) > TOLERANCE


@pytest.mark.parametrize(("keep", "group"), PATTERNS)
def test_never_worse_than_the_start_and_the_start_is_left_alone(keep, group):
    problem, _ = tiled(keep, group, seed=1)
    start = problem.polytope.round(Draw(9).uniform(0, 1, 24, 24))
    before = start.clone()
    solution = solve(problem, "swap", start=start)
    assert torch.equal(start, before)
    assert solution.objective < problem.objective(start)
    assert 0 < solution.stats.swap_rounds <= solution.stats.swaps + 1


def test_the_round_budget_is_kept_and_said():
    problem, _ = tiled(2, 4, seed=2)
    start = problem.polytope.round(Draw(9).uniform(0, 1, 24, 24))
    solution = solve(problem, "swap", start=start, max_iterations=1)
    assert solution.status is Status.ITERATION_LIMIT and solution.stats.swap_rounds == 1
    assert feasible(solution.mask, 4, 2) and solution.objective < problem.objective(start)
    late = solve(problem, "swap", start=start, time_limit_s=1e-9)
    assert late.status is Status.TIME_LIMIT and torch.equal(late.mask, start)


@pytest.mark.parametrize("fixed", [False, True])
def test_runs_of_bands_give_the_same_mask(fixed):
    problem, _ = tiled(2, 4, seed=4, fixed=fixed)
    whole = solve(problem, "swap")
    split = solve(problem, "swap", memory_budget_bytes=least_memory(problem, "swap"))
    assert torch.equal(whole.mask, split.mask)
    assert whole.stats.products == pytest.approx(split.stats.products)
    quick = solve(problem, effort="fast")
    assert torch.equal(
        solve(problem, effort="fast", memory_budget_bytes=least_memory(problem, effort="fast")).mask, quick.mask
    )


def test_annealing_and_descent_beat_both_alone():
    problem, _ = tiled(4, 8, seed=6)
    annealed = solve(problem, "fw")
    assert annealed.polish == "swap" and annealed.lower_bound > 0
    assert annealed.objective < solve(problem, "wanda").objective
    assert annealed.objective <= solve(problem, "fw", polish=None).objective
