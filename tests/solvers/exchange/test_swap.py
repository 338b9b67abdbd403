from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relaxprune import KSparse, MaskProblem, Status, solve
from relaxprune.solving.solving import least_memory
from tests.enumeration import numbers, objective, swap_gain
from tests.layers import POLYTOPES, SHAPE, layer
from tests.random_problems import Draw, random_case

TOLERANCE = 1e-9
SEEDS = st.integers(0, 2**31)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", POLYTOPES)
@pytest.mark.parametrize("start", ["wanda", "magnitude", "ria", None])
def test_ends_where_no_pair_of_all_pairs_helps(name, fixed, start):
    problem, rule = layer(name, fixed=fixed)
    solution = solve(problem, "swap", start=start)
    assert solution.status in (Status.CONVERGED, Status.OPTIMAL)
    assert rule.feasible(solution.mask)
    assert swap_gain(problem.weight, problem.gram, rule, solution.mask) <= TOLERANCE


@given(seed=SEEDS)
def test_ends_one_swap_optimal_on_adversarial_problems(seed):
    case = random_case(seed)
    solution = solve(case.problem, "swap")
    assert case.rule.feasible(solution.mask), case.label
    assert swap_gain(case.problem.weight, case.problem.gram, case.rule, solution.mask) <= TOLERANCE, case.label


@settings(max_examples=40)
@given(seed=SEEDS, spread=st.floats(0, 6), near=st.floats(-7, 0))
def test_no_pair_of_all_pairs_gains_in_rows_of_any_scale(seed, spread, near):
    """Large entries beside small ones, columns that are nearly the same: all pairs again, in extended precision."""
    draw = Draw(seed)
    rows, cols = 6, draw.whole(8, 24)
    inputs = draw.normal(3 * cols, cols)
    inputs[:, 1::2] = inputs[:, : cols - cols % 2 : 2] + 10**near * inputs[:, 1::2]
    large = draw.bits(draw.uniform(0, 0.7).item(), rows, cols)
    weight = draw.normal(rows, cols) * torch.where(large, 10**spread, 10**-spread)
    gram = inputs.T @ inputs / len(inputs)
    problem = MaskProblem(weight, gram, KSparse(cols // 2))
    start = problem.polytope.round(draw.normal(rows, cols))  # large entries pruned: moves leave rounding behind
    mask = solve(problem, "swap", start=start).mask
    for row in range(rows):
        gain, noise, now = exchange_gains(weight[row], problem.gram, mask[row])
        assert bool((gain <= 1e-9 * now + noise).all())


def exchange_gains(weight, gram, mask):
    """What each exchange (kept, pruned) gains, what float64 can tell of it, and the row's objective."""
    wide, matrix, pruned = numbers(weight), numbers(gram), ~mask.numpy()
    energy = wide[:, None] * matrix * wide
    half = -(energy * pruned).sum(axis=1)
    diagonal = energy.diagonal()
    keep, drop = np.flatnonzero(~pruned), np.flatnonzero(pruned)
    change = (diagonal - 2 * half)[keep, None] + (diagonal + 2 * half)[drop] - 2 * energy[np.ix_(keep, drop)]
    root = diagonal**0.5
    noise = 2.0**-50 * (root * root[pruned].sum() + diagonal)
    return -change, noise[keep, None] + noise[drop], -half[pruned].sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_deficient_grams_and_narrow_weights(dtype):
    for name in POLYTOPES:
        problem, rule = layer(name, seed=3, dtype=dtype, rank=9)
        solution = solve(problem, "swap")
        assert swap_gain(problem.weight, problem.gram, rule, solution.mask) <= TOLERANCE, name


@pytest.mark.parametrize("name", ["row", "layer", "2:4"])
def test_the_check_itself_fails_on_a_mask_with_one_swapped_pair(name):
    """Easy to fake: a checker that passes everything. One exchange away from an optimum it must say no."""
    problem, rule = layer(name)
    mask = solve(problem, "swap").mask.numpy()
    around = rule.neighbours(mask)
    assert len(around) > 100
    for other in around[:: len(around) // 5]:
        assert swap_gain(problem.weight, problem.gram, rule, other) > TOLERANCE


def test_the_check_itself_fails_on_a_single_missing_entry():
    problem, rule = layer("row at most")
    mask = solve(problem, "swap").mask.clone()
    mask[0, int(mask[0].nonzero()[0])] = False
    assert rule.feasible(mask) and swap_gain(problem.weight, problem.gram, rule, mask) > TOLERANCE


@pytest.mark.parametrize("name", POLYTOPES)
def test_never_worse_than_the_start_and_a_fixed_point(name):
    problem, _ = layer(name, seed=1)
    start = problem.polytope.round(Draw(9).uniform(0, 1, *SHAPE))
    once = solve(problem, "swap", start=start)
    assert once.objective < problem.objective(start)
    assert once.stats.swaps > 0 and once.stats.swap_rounds > 0
    again = solve(problem, "swap", start=once.mask)
    assert torch.equal(again.mask, once.mask) and again.stats.swaps == 0


def test_the_start_is_not_written_to():
    problem, _ = layer("row")
    start = problem.polytope.round(Draw(9).uniform(0, 1, *SHAPE))
    before = start.clone()
    solve(problem, "swap", start=start)
    assert torch.equal(start, before)


def test_an_exchange_across_rows_is_found():
    """One row holds every large weight: the layer's count must move there, which no exchange within rows can do."""
    weight = torch.full((4, 8), 0.01, dtype=torch.float64)
    weight[2] = torch.arange(1, 9)
    problem = MaskProblem(weight, torch.eye(8, dtype=torch.float64), KSparse(8, "layer"))
    start = torch.zeros(4, 8, dtype=torch.bool)
    start[:, :2] = True
    solution = solve(problem, "swap", start=start)
    assert solution.mask[2].all() and solution.mask.sum().item() == 8
    assert solution.objective == pytest.approx(objective(weight, problem.gram, solution.mask))


def test_at_most_drops_what_harms_and_adds_what_helps():
    """Two opposite inputs cancel: keeping one alone is worse than keeping none."""
    gram = torch.tensor([[1.0, -0.999, 0.0], [-0.999, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    problem = MaskProblem(torch.tensor([[1.0, 1.0, 0.1]]).double(), gram, KSparse(1, at_most=True))
    solution = solve(problem, "swap", start=torch.tensor([[True, False, False]]))
    assert solution.mask.tolist() == [[False, False, True]]


def test_the_round_budget_is_kept_and_said():
    problem, rule = layer("row", seed=2)
    start = problem.polytope.round(Draw(9).uniform(0, 1, *SHAPE))
    solution = solve(problem, "swap", start=start, max_iterations=1)
    assert solution.status is Status.ITERATION_LIMIT and solution.stats.swap_rounds == 1
    assert rule.feasible(solution.mask) and solution.objective < problem.objective(start)


def test_no_time_is_said_and_the_mask_is_feasible():
    problem, rule = layer("row", seed=2)
    started = time.monotonic()
    solution = solve(problem, "swap", time_limit_s=1e-9)
    assert time.monotonic() - started < 5
    assert solution.status is Status.TIME_LIMIT and rule.feasible(solution.mask)


@pytest.mark.parametrize("name", ["row", "row at most", "2:4"])
def test_blocks_of_rows_give_the_same_mask(name):
    problem, _ = layer(name, seed=4)
    whole = solve(problem, "swap")
    split = solve(problem, "swap", memory_budget_bytes=least_memory(problem, "swap"))
    assert torch.equal(whole.mask, split.mask)
    assert 1 <= split.stats.products <= whole.stats.products  # blocks that need no move need no second product
