"""After a descent inside small groups and tiles, no other mask of any of them is better, by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from relaxprune import NM, MaskProblem, Status, TransposableNM, solve
from tests.layers import correlated_gram
from tests.random_problems import Draw
from tests.tiles import tile_masks


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 4), (4, 8), (3, 5)])
@pytest.mark.parametrize("fixed", [False, True])
def test_no_mask_of_any_group_is_better(keep, group, fixed):
    draw = Draw(10 * keep + group)
    cols = 6 * group
    weight, gram = draw.normal(5, cols), correlated_gram(cols, draw)
    entries = {}
    if fixed:
        kept = torch.zeros(5, cols, dtype=torch.bool)
        kept[:, ::group] = True
        pruned = torch.zeros_like(kept)
        pruned[::2, 1::group] = True
        entries = {"fixed_kept": kept, "fixed_pruned": pruned}
    problem = MaskProblem(weight, gram, NM(keep, group), **entries)
    mask = solve(problem, "swap").mask
    value = problem.block_objective(mask)
    for chosen in itertools.combinations(range(group), keep):
        for first in range(0, cols, group):
            other = mask.clone()
            other[:, first : first + group] = False
            other[:, [first + column for column in chosen]] = True
            allowed = torch.ones(5, dtype=torch.bool)
            if fixed:
                allowed = ((other | ~entries["fixed_kept"]) & ~(other & entries["fixed_pruned"])).all(dim=1)
            assert bool((problem.block_objective(other) >= value * (1 - 1e-8))[allowed].all())


def test_two_exchanges_at_once_are_found_where_none_helps_alone():
    """Columns 0 and 1 cancel, and so do 2 and 3: pruning one of each pair is far worse than pruning either pair."""
    factor = torch.tensor([[3.0, -3.2, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    gram = torch.block_diag(factor.T @ factor + 0.001 * torch.eye(4), torch.eye(4))
    problem = MaskProblem(torch.ones(1, 8), gram, NM(2, 4))
    start = torch.tensor([[False, False, True, True, True, True, False, False]])
    best = solve(problem, "enumerate").objective
    found = solve(problem, "swap", start=start)
    assert problem.objective(start) > best + 0.03 and found.objective == pytest.approx(best)
    assert found.stats.swaps == 2


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 4), (1, 3), (1, 5)])
@pytest.mark.parametrize("fixed", [False, True])
def test_no_mask_of_any_tile_is_better(keep, group, fixed):
    draw = Draw(100 * keep + group)
    rows, cols = 2 * group, 5 * group
    weight, gram = draw.normal(rows, cols), correlated_gram(cols, draw)
    entries = {}
    if fixed:
        kept = torch.zeros(rows, cols, dtype=torch.bool)
        kept[::group, ::group] = True
        pruned = torch.zeros_like(kept)
        pruned[::group, 1::group] = True
        entries = {"fixed_kept": kept, "fixed_pruned": pruned}
    problem = MaskProblem(weight, gram, TransposableNM(keep, group), **entries)
    mask = solve(problem, "swap").mask
    value = problem.block_objective(mask)  # of each band
    for tile in tile_masks(group, keep):
        for first in range(0, cols, group):
            other = mask.clone()
            other[:, first : first + group] = torch.from_numpy(tile).repeat(2, 1)
            changed = problem.block_objective(other)
            if fixed:
                good = (other | ~entries["fixed_kept"]) & ~(other & entries["fixed_pruned"])
                changed[~good.view(2, -1).all(dim=1)] = torch.inf
            assert bool((changed >= value * (1 - 1e-8)).all())


@pytest.mark.parametrize("polytope", [NM(2, 4), NM(2, 4, at_most=True), TransposableNM(2, 4)], ids=str)
def test_a_mask_that_loses_nothing_ends_the_search(polytope):
    """Where two of every four columns cancel, all gains are rounding: none may keep the search going."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(64, 32, generator=generator), torch.randn(8, 32, generator=generator)
    inputs[:, 1::4], weight[:, 1::4] = inputs[:, 0::4], -weight[:, 0::4]
    problem = MaskProblem(weight, inputs.T @ inputs / 64, polytope)
    solution = solve(problem, "swap")
    assert solution.status in (Status.CONVERGED, Status.OPTIMAL) and solution.stats.swap_rounds < 100
    if not isinstance(polytope, TransposableNM):  # its columns may not all lose the same two
        assert solution.objective <= 1e-12 * problem.objective(torch.zeros(problem.shape))
