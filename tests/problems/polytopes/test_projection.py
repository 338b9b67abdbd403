from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from relaxprune import NM, KSparse, RelaxPruneError
from relaxprune.problems import Face, Polytope
from relaxprune.problems.polytopes.projection import project_capped
from relaxprune.problems.polytopes.transposable import TransposableNM
from tests.enumeration import Array, Rule
from tests.random_problems import SETS, Draw, fixed_entries, make_set

SEEDS = st.integers(0, 2**31)
SCALES = st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6])


def by_bisection(point: Array, keep: float, weights: Array, at_most: bool) -> Array:
    """One line, positive weights, in extended precision: the price halved until nothing moves."""
    y, w = point.astype(np.longdouble), weights.astype(np.longdouble)
    clipped = y.clip(0, 1)
    if at_most and clipped.sum() <= keep:
        return clipped
    low, high = (w * (y - 1)).min(), (w * y).max()
    for _ in range(300):
        price = low + (high - low) / 2
        low, high = (price, high) if (y - price / w).clip(0, 1).sum() > keep else (low, price)
    return (y - high / w).clip(0, 1)


def by_clarabel(rule: Rule, point: Tensor, weights: Tensor) -> float:
    """The least Σ w (x − y)² over the set, by an interior point method."""
    cp = pytest.importorskip("cvxpy", reason="the projection is compared with Clarabel through cvxpy")
    y, w = point.numpy().ravel(), weights.numpy().ravel()
    x = cp.Variable(y.size, bounds=[0, 1])
    counts = [cp.sum(x[list(cell)]) for cell in rule.cells]
    limits = [count <= rule.keep if rule.at_most else count == rule.keep for count in counts]
    for entries, value in ((rule.kept, 1), (rule.pruned, 0)):
        if entries is not None and entries.any():
            limits.append(x[np.flatnonzero(entries)] == value)
    task = cp.Problem(cp.Minimize(cp.sum(cp.multiply(w, cp.square(x - y)))), limits)
    task.solve(solver="CLARABEL")
    return float(task.value)


def distance(point: Tensor, other: Tensor, weights: Tensor) -> float:
    return float((weights * (point - other).square()).sum())


def violation(rule: Rule, point: Tensor) -> float:
    """How far a point is from the set: box, counts and fixed entries."""
    values = point.double().numpy()
    worst = max(float(-values.min()), float(values.max() - 1))
    for cell in rule.cells:
        excess = float(values.flat[list(cell)].sum()) - rule.keep
        worst = max(worst, excess if rule.at_most else abs(excess))
    for entries, value in ((rule.kept, 1), (rule.pruned, 0)):
        if entries is not None and entries.any():
            worst = max(worst, float(abs(values[entries] - value).max()))
    return worst


@pytest.mark.parametrize("at_most", [False, True])
@given(seed=SEEDS, scale=SCALES, ties=st.booleans(), weighted=st.booleans())
def test_it_is_the_projection_found_by_bisection(at_most, seed, scale, ties, weighted):
    draw = Draw(seed)
    lines, size = draw.whole(1, 5), draw.whole(1, 40)
    keep = draw.pick(("none", "all", "some"))
    count = {"none": 0, "all": size, "some": draw.whole(0, size)}[keep]
    point = draw.normal(lines, size)
    point = (point.round() if ties else point) * scale + draw.whole(0, 1)
    weights = 10 ** draw.uniform(-3, 3, lines, size) if weighted else torch.ones(lines, size, dtype=torch.float64)
    found = project_capped(point, count, weights if weighted else None, at_most=at_most)
    for line in range(lines):
        expected = by_bisection(point[line].numpy(), count, weights[line].numpy(), at_most)
        # Price and point cancel: what is left is accurate to the rounding of the point itself.
        assert np.abs(found[line].numpy() - expected).max() <= 1e-9 + 1e-14 * scale * (1e6 if weighted else 1)
    across = project_capped(point.T, count, weights.T if weighted else None, at_most=at_most, dim=0).T
    assert torch.allclose(across, found, atol=1e-9 + 1e-14 * scale * 1e6)


@pytest.mark.parametrize("kind", SETS)
@given(seed=SEEDS, scale=SCALES)
def test_the_count_holds_and_nothing_can_be_shifted_at_a_gain(kind, seed, scale):
    """The optimality conditions, by hand: with g = w (x − y), no entry above 0 costs more than one below 1 gains."""
    draw = Draw(seed)
    base, rule = make_set(kind, draw)
    kept, pruned = fixed_entries(rule, draw) if draw.whole(0, 1) else (None, None)
    polytope, rule = Face(base, kept, pruned), rule.fixing(kept, pruned)
    point, weights = scale * draw.normal(*rule.shape), 10 ** draw.uniform(-3, 3, *rule.shape)
    weights[draw.bits(0.2, *rule.shape)] = 0
    found = polytope.project(point, weights)
    assert violation(rule, found) <= 1e-9 and polytope.contains(found, 1e-9)
    slope = (weights * (found - point)).numpy()
    free = np.ones(rule.shape, bool)
    for entries in (rule.kept, rule.pruned):
        free &= True if entries is None else ~entries
    noise = 1e-9 * max(1.0, scale) * float(weights.max())
    values = found.numpy()
    for cell in rule.cells:
        index = [i for i in cell if free.flat[i]]
        down = [slope.flat[i] for i in index if values.flat[i] > 1e-9]
        up = [slope.flat[i] for i in index if values.flat[i] < 1 - 1e-9]
        if down and up:
            assert max(down) <= min(up) + noise
        if rule.at_most and down:
            assert max(down) <= noise, "lowering one entry would help"
        if rule.at_most and up and values.flat[list(cell)].sum() < rule.keep - 1e-6:
            assert min(up) >= -noise, "there is room, and raising one entry would help"


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("seed", range(4))
def test_it_is_as_near_as_clarabel_comes(kind, seed):
    draw = Draw(seed)
    base, rule = make_set(kind, draw)
    kept, pruned = fixed_entries(rule, draw) if seed % 2 else (None, None)
    polytope, rule = Face(base, kept, pruned), rule.fixing(kept, pruned)
    point, weights = 0.5 + draw.normal(*rule.shape), 10 ** draw.uniform(-1, 1, *rule.shape)
    if seed >= 2:
        weights[draw.bits(0.3, *rule.shape)] = 0
    best = by_clarabel(rule, point, weights)
    found = distance(polytope.project(point, weights), point, weights)
    assert found == pytest.approx(best, rel=1e-5, abs=1e-6)
    plain = torch.ones_like(weights)
    best = by_clarabel(rule, point, plain)
    assert distance(polytope.project(point), point, plain) == pytest.approx(best, rel=1e-5, abs=1e-6)


def test_entries_of_zero_weight_take_what_the_others_leave():
    point = torch.tensor([[0.9, 0.8, 0.1, 0.3]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    # 1.7 are wanted, 2 are there: the rest goes, evenly, to the free ones.
    assert torch.allclose(KSparse(2).project(point, weights), torch.tensor([[0.9, 0.8, 0.05, 0.25]]).double())
    # 1.7 are wanted, 1 is there: the free ones get nothing.
    assert torch.allclose(KSparse(1).project(point, weights), torch.tensor([[0.55, 0.45, 0.0, 0.0]]).double())
    # All that is wanted is there, and there is room: nothing moves.
    assert torch.allclose(KSparse(3, at_most=True).project(point, weights), point)
    assert torch.allclose(KSparse(1).project(point, 0 * weights), KSparse(1).project(point))


def test_small_weights_tend_to_zero_weights(generator):
    point = torch.randn(6, 30, generator=generator, dtype=torch.float64)
    weights = torch.rand(6, 30, generator=generator, dtype=torch.float64) + 0.1
    light = torch.rand(6, 30, generator=generator) < 0.4
    limit = KSparse(11).project(point, weights.masked_fill(light, 0.0))
    assert torch.allclose(KSparse(11).project(point, weights.masked_fill(light, 1e-9)), limit, atol=1e-6)


@pytest.mark.parametrize("keep", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_none_and_all_are_exact(keep, dtype, generator):
    point = 1e3 * torch.randn(4, 7, generator=generator).to(dtype)
    weights = torch.rand(4, 7, generator=generator).to(dtype) * 10 ** torch.linspace(-30, 0, 7).to(dtype)
    for found in (KSparse(keep).project(point), KSparse(keep).project(point, weights)):
        assert found.dtype == dtype and torch.equal(found, torch.full_like(point, keep / 7))


@pytest.mark.parametrize("polytope", [KSparse(9), KSparse(40, "layer"), NM(2, 4), KSparse(9, at_most=True)])
def test_a_point_of_the_set_stays_where_it_is(polytope: Polytope, generator):
    cost = torch.randn(3, 5, 20, generator=generator, dtype=torch.float64)
    inside = torch.stack([polytope.lmo(part) for part in cost]).mean(dim=0)
    weights = torch.rand(5, 20, generator=generator, dtype=torch.float64)
    assert torch.allclose(polytope.project(inside), inside, atol=1e-12)
    assert torch.allclose(polytope.project(inside, weights), inside, atol=1e-9)


def test_weights_many_orders_apart_still_give_the_count(generator):
    """Prices next to each other in float64 differ in the sum here: no Newton step can end it."""
    point = 1 + torch.rand(50, 12, generator=generator, dtype=torch.float64)
    weights = 10.0 ** torch.randint(-60, 1, (50, 12), generator=generator).double()
    found = project_capped(point, 5, weights)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert torch.allclose(found.sum(dim=1), torch.full((50,), 5.0).double(), atol=1e-9)


def test_many_lines_of_which_few_are_slow(generator):
    """Lines that are still open go on by themselves; the others must not notice."""
    point = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    weights = torch.ones(500, 8, dtype=torch.float64)
    weights[::50] = 10 ** torch.empty(10, 8).uniform_(-6, 6, generator=generator).double()
    together = project_capped(point, 3, weights)
    alone = torch.cat([project_capped(point[i : i + 1], 3, weights[i : i + 1]) for i in range(500)])
    assert torch.allclose(together, alone, atol=1e-9)


def test_broken_numbers_show():
    point = torch.tensor([[0.1, float("nan"), 0.3], [0.1, 0.2, 0.3]])
    found = KSparse(1).project(point)
    assert bool(found[0].isnan().any()) and bool(torch.isfinite(found[1]).all())


def test_a_set_without_a_projection_says_so():
    polytope = TransposableNM(2, 4)
    assert not polytope.projects() and not Face(polytope).projects() and KSparse(3).projects() and NM(1, 2).projects()
    with pytest.raises(RelaxPruneError, match="use a solver that needs only a linear oracle, such as fw"):
        polytope.project(torch.zeros(4, 4))
