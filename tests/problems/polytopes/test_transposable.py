from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from relaxprune import MaskProblem, RelaxPruneError, TransposableNM, solve
from relaxprune.problems import Face, polytope_from_dict
from relaxprune.problems.polytopes import transposable
from relaxprune.problems.polytopes.transposable_oracle import cheapest, flow_mask, from_tiles, to_tiles
from tests.layers import correlated_gram
from tests.random_problems import Draw, make_gram, make_weight
from tests.tiles import band_masks, best_bands, feasible, tile_masks

SEEDS = st.integers(0, 2**31)
COSTS = ("normal", "ties", "product", "spread", "zero")


def make_costs(kind: str, rows: int, cols: int, draw: Draw) -> Tensor:
    cost = draw.normal(rows, cols)
    if kind == "ties":
        return cost.round()
    if kind == "product":
        return cost.abs() * draw.normal(rows, 1).exp() * draw.normal(1, cols).exp()
    if kind == "spread":
        return cost * 10 ** draw.uniform(-3, 3, rows, cols)
    return torch.zeros(rows, cols, dtype=torch.float64) if kind == "zero" else cost


def linear_program(costs: Tensor, keep: int) -> float:
    """The least cost of one tile by scipy."""
    group = len(costs)
    counts = np.vstack([np.kron(np.eye(group), np.ones(group)), np.kron(np.ones(group), np.eye(group))])
    answer = linprog(costs.flatten().numpy(), A_eq=counts, b_eq=np.full(2 * group, keep), bounds=(0, 1))
    return float(answer.fun)


@given(seed=SEEDS)
def test_three_oracles_agree_on_every_tile(seed):
    draw = Draw(seed)
    group, kind = draw.whole(1, 9), draw.pick(COSTS)
    keep = draw.whole(0, group)
    rows, cols = group * draw.whole(1, 2), group * draw.whole(1, 3)
    cost = make_costs(kind, rows, cols, draw)
    polytope = TransposableNM(keep, group)
    vertex = polytope.lmo(cost)
    assert vertex.dtype == cost.dtype and polytope.contains(vertex)
    assert feasible(vertex.bool(), group, keep) and bool(((vertex == 0) | (vertex == 1)).all())
    tiles, chosen = to_tiles(cost, group), to_tiles(vertex, group)
    scale = 1 + float(cost.abs().sum())
    for t in range(tiles.shape[2]):
        value = float((tiles[..., t] * chosen[..., t]).sum())
        flow = flow_mask(tiles[..., t], keep)
        assert feasible(flow, group, keep)
        assert value == pytest.approx(float((tiles[..., t] * flow).sum()), abs=1e-11 * scale)
        assert value == pytest.approx(linear_program(tiles[..., t], keep), abs=1e-9 * scale)
    assert torch.equal(from_tiles(tiles, rows, cols), cost)


@pytest.mark.parametrize(("keep", "group"), [(8, 16), (3, 16), (4, 8), (2, 32)])
def test_wide_tiles_agree_with_the_flow(keep, group, device):
    costs = torch.randn(group, group, 3, dtype=torch.float64) * torch.randn(1, group, 3, dtype=torch.float64).exp()
    mask = cheapest(costs.to(device), keep).cpu()
    for t in range(3):
        flow = flow_mask(costs[..., t], keep)
        assert float((costs[..., t] * mask[..., t]).sum()) == pytest.approx(float((costs[..., t] * flow).sum()))


@given(seed=SEEDS)
def test_fixed_entries_are_obeyed_at_least_cost_and_the_bound_is_tight(seed):
    draw = Draw(seed)
    group = draw.whole(2, 4)
    keep, bands = draw.whole(0, group), draw.whole(1, 2)
    masks = band_masks(group, group, keep)
    mask = torch.from_numpy(np.concatenate([masks[draw.whole(0, len(masks) - 1)] for _ in range(bands)]))
    share = float(draw.uniform(0, 1))
    kept, pruned = mask & draw.bits(share, *mask.shape), ~mask & draw.bits(share, *mask.shape)
    cost = make_costs(draw.pick(COSTS), bands * group, group, draw)
    base = TransposableNM(keep, group)
    face = Face(base, kept, pruned if draw.whole(0, 1) else None)
    face.validate((bands * group, group))
    vertex = face.lmo(cost).bool()
    assert feasible(vertex, group, keep) and face.contains(vertex)
    bound, free = face.lmo_bound(cost), base.lmo_bound(cost)
    scale = 1 + float(cost.abs().sum())
    for band in range(bands):
        part = slice(band * group, (band + 1) * group)
        every = (masks * cost[part].numpy()).sum(axis=(1, 2))
        good = masks[:, kept[part].numpy()].all(axis=1)
        if face.pruned_entries is not None:
            good &= ~masks[:, pruned[part].numpy()].any(axis=1)
        assert float((cost[part] * vertex[part]).sum()) == pytest.approx(every[good].min(), abs=1e-11 * scale)
        for value, least in ((bound[band], every[good].min()), (free[band], every.min())):
            assert float(value) <= least + 1e-15 * scale
            assert float(value) == pytest.approx(least, abs=1e-11 * scale)


@given(seed=SEEDS)
def test_the_oracle_of_the_minimal_face(seed):
    """A point between a few masks: the best mask among those that agree with it where it is 0 or 1."""
    draw = Draw(seed)
    group = draw.whole(2, 4)
    masks = tile_masks(group, draw.whole(0, group))
    point = torch.from_numpy(masks[[draw.whole(0, len(masks) - 1) for _ in range(draw.whole(1, 3))]]).double().mean(0)
    polytope = TransposableNM(int(masks[0][0].sum()), group)
    cost = make_costs(draw.pick(COSTS), group, group, draw)
    vertex = polytope.face_lmo(cost, point)
    inside = masks[((point.numpy() == masks) | ((point > 0) & (point < 1)).numpy()).all(axis=(1, 2))]
    assert feasible(vertex.bool(), group, polytope.keep)
    assert bool(((vertex == point) | ((point > 0) & (point < 1))).all())
    scale = 1 + float(cost.abs().sum())
    least = (inside * cost.numpy()).sum(axis=(1, 2)).min()
    assert float((cost * vertex).sum()) == pytest.approx(least, abs=1e-11 * scale)


def test_the_bound_holds_whatever_the_oracle_answers(monkeypatch):
    """The prices of a bad mask prove less, never too much."""
    cost = Draw(3).normal(8, 16)
    polytope = TransposableNM(2, 4)
    best = polytope.lmo_bound(cost)
    monkeypatch.setattr(transposable, "cheapest", lambda costs, keep: cheapest(torch.randn_like(costs), keep))
    bad = polytope.lmo_bound(cost)
    assert bool(torch.isfinite(bad).all()) and bool((bad < best - 1e-3).all())


def test_rounding_takes_the_largest_sum_and_leaves_masks_alone():
    draw = Draw(0)
    polytope = TransposableNM(2, 4)
    every = tile_masks(4, 2)
    point = draw.uniform(0, 1, 4, 4)
    mask = polytope.round(point)
    assert mask.dtype == torch.bool
    assert float((point * mask).sum()) == pytest.approx((every * point.numpy()).sum(axis=(1, 2)).max())
    for one in every[::7]:
        bits = torch.from_numpy(one)
        assert torch.equal(polytope.round(bits.float()), bits) and polytope.contains(bits)
    assert not polytope.contains(~torch.from_numpy(tile_masks(4, 1)[0]))
    ones = polytope.round(torch.ones(8, 12))
    assert feasible(ones, 4, 2) and torch.equal(polytope.round(torch.ones(8, 12)), ones)
    for i in (0, 4):
        for j in (0, 4, 8):
            assert torch.equal(ones[i : i + 4, j : j + 4], ones[:4, :4])


def test_a_tile_is_answered_alike_wherever_it_stands():
    cost = torch.randn(32, 48).round()
    cost[0, 0] = torch.inf
    whole = TransposableNM(4, 8).lmo(cost)
    assert torch.equal(TransposableNM(4, 8).lmo(cost[8:16, 16:24]), whole[8:16, 16:24])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keep_nothing_everything_and_narrow_floats(device, dtype):
    cost = torch.randn(8, 12, device=device).to(dtype)
    assert not TransposableNM(0, 4).lmo(cost).any() and not TransposableNM(0, 4).round(cost).any()
    assert TransposableNM(4, 4).lmo(cost).all() and TransposableNM(4, 4).round(cost).all()
    assert TransposableNM(2, 4).lmo(cost).dtype == dtype
    for keep, total in ((0, 0.0), (4, float(cost.double().sum()))):
        assert float(TransposableNM(keep, 4).lmo_bound(cost).sum()) == pytest.approx(total, abs=1e-9)
    assert torch.equal(TransposableNM(1, 1).lmo(cost), torch.ones_like(cost))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_still_gets_a_mask(value):
    cost = torch.randn(8, 8)
    cost[:4] = value
    assert feasible(TransposableNM(2, 4).lmo(cost).bool(), 4, 2)


def test_the_vertices_are_all_masks_of_a_band():
    for keep, cols in ((1, 4), (2, 4), (3, 4), (1, 8)):
        found = TransposableNM(keep, 4).vertices((8, cols)).numpy()
        expected = band_masks(cols, 4, keep)
        assert {mask.tobytes() for mask in found} == {mask.tobytes() for mask in expected}
        assert len(found) == len(expected)


def test_what_it_says_of_itself():
    polytope = TransposableNM.from_pattern("2:4")
    assert polytope == TransposableNM(2, 4) and polytope.kept((8, 12)) == 48
    assert polytope.rows_per_block((8, 12)) == 4 and polytope.block_count((8, 12)) == 2
    assert polytope.group_size((8, 12)) == 4 and polytope.counts_columns() and Face(polytope).counts_columns()
    assert polytope_from_dict(polytope.to_dict()) == polytope
    assert polytope.at_most_set() == polytope and not polytope.is_at_most()
    assert polytope.with_share(0.9) == TransposableNM(1, 4) and not polytope.room(torch.ones(4, 4).bool()).any()
    assert polytope.rows(slice(0, 4)) == polytope


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TransposableNM(5, 4), "keep is 5, but a row of a tile has only 4"),
        (lambda: TransposableNM(1, 0), "group must be a whole number of at least 1"),
        (lambda: TransposableNM(2, 4).validate((6, 8)), "group is 4, which does not divide the 6 rows"),
        (lambda: TransposableNM(2, 4).validate((8, 6)), "group is 4, which does not divide the 6 columns"),
        (lambda: TransposableNM.from_pattern("2-4"), 'pattern must look like "2:4"'),
        (
            lambda: Face(TransposableNM(1, 4), torch.eye(4).bool().roll(1, 0) | torch.eye(4).bool()).validate((4, 4)),
            "fixed_kept and fixed_pruned leave no feasible mask",
        ),
        (lambda: TransposableNM(2, 4).project(torch.zeros(4, 4)), "has no projection"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(make, words):
    with pytest.raises(RelaxPruneError) as refused:
        make()
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("solver", ["fw", "sparsefw", "swap", "wanda", "ria", "magnitude"])
@pytest.mark.parametrize(("keep", "shape", "fixed"), [(1, (8, 8), False), (2, (8, 4), True), (2, (4, 8), False)])
def test_solvers_give_masks_and_valid_bounds(solver, keep, shape, fixed):
    for seed in range(2):
        draw = Draw(seed)
        weight, gram = draw.normal(*shape), correlated_gram(shape[1], draw)
        polytope = TransposableNM(keep, 4)
        kept = polytope.round(draw.normal(*shape)) & draw.bits(0.2, *shape) if fixed else None
        problem = MaskProblem(weight, gram, polytope, fixed_kept=kept)
        best = best_bands(weight, gram, 4, keep, (kept, None))
        budget = {"max_iterations": 60} if solver in ("fw", "sparsefw", "swap") else {}
        solution = solve(problem, solver, **budget)
        assert feasible(solution.mask, 4, keep) and problem.polytope.contains(solution.mask)
        tolerance = 1e-12 * float(best.sum())
        assert (solution.block_lower_bound.numpy() <= best + tolerance).all()
        assert (best <= solution.block_objective.numpy() + tolerance).all()
        assert solution.block_lower_bound.shape == (shape[0] // 4,)
        if solver == "fw":
            assert solution.objective <= 1.3 * best.sum() and solution.lower_bound > 0


@given(seed=SEEDS)
def test_bounds_hold_on_adversarial_problems(seed):
    draw = Draw(seed)
    group = draw.whole(1, 4)
    keep, shape = draw.whole(0, group), (group * draw.whole(1, 2), group * (1 if group == 4 else draw.whole(1, 2)))
    kinds = ("gaussian", "low rank", "duplicated", "scaled", "dead", "ill-conditioned", "diagonal", "zero")
    gram = make_gram(draw.pick(kinds), shape[1], draw)
    weight = make_weight(draw.pick(("normal", "float32", "ties", "zero row", "spread")), shape, gram, draw)
    problem = MaskProblem(weight, gram, TransposableNM(keep, group))
    best = best_bands(weight, gram, group, keep)
    solution = solve(problem, "fw", dtype="float64", max_iterations=40)
    scale = 1e-12 * problem.dense_energy
    assert feasible(solution.mask, group, keep)
    assert (solution.block_lower_bound.numpy() <= best * (1 + 1e-12) + scale).all()
    assert solution.objective >= best.sum() - scale


def test_without_correlations_the_oracle_is_optimal_and_proven_so():
    draw = Draw(5)
    problem = MaskProblem(draw.normal(16, 32), torch.diag(draw.uniform(0.5, 2, 32)), TransposableNM(4, 8))
    gains = problem.half_gradient(torch.zeros(16, 32))  # the objective of a mask is f(0) plus the sum of these
    mask = problem.polytope.lmo(gains).bool()
    value = problem.polytope.block_sum((gains * mask).sum(dim=1))
    assert torch.allclose(problem.polytope.lmo_bound(gains), value, rtol=1e-12, atol=0)
    swapped = solve(problem, "swap", start=mask)
    assert swapped.stats.swaps == 0 and swapped.objective == pytest.approx(problem.dense_energy + float(value.sum()))
