"""The oracle of minimal faces against every mask of the set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import NM, KSparse
from relaxprune.problems import Face, Polytope
from relaxprune.problems.polytopes.transposable import TransposableNM
from tests.enumeration import Rule
from tests.random_problems import SETS, Draw, fixed_entries, make_set

SEEDS = st.integers(0, 2**31)
SHARES = [(1.0, 0, 0, 0), (0.5, 0.5, 0, 0), (0.25, 0.25, 0.25, 0.25), (0.125, 0.125, 0.25, 0.5)]


def random_point(rule: Rule, draw: Draw) -> torch.Tensor:
    """A mix of up to four masks of each block, with shares that are exact in binary."""
    parts = []
    for masks in rule.blocks:
        picks = [masks[draw.whole(0, len(masks) - 1)] for _ in range(4)]
        shares = SHARES[draw.whole(0, 3)]
        parts.append(sum(share * torch.from_numpy(pick).double() for share, pick in zip(shares, picks, strict=True)))
    return torch.cat(parts)


def on_face(rule: Rule, block: int, masks: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The masks of a block on the smallest face with ``point`` (height, cols), from the inequalities."""
    good = ((masks == 1) | (point < 1)).all(axis=(1, 2)) & ((masks == 0) | (point > 0)).all(axis=(1, 2))
    flat, first = masks.reshape(len(masks), -1), block * masks[0].size
    for cell in rule.cells:
        if first <= cell[0] < first + masks[0].size:
            index = np.array(cell) - first
            if point.reshape(-1)[index].sum() == rule.keep:
                good &= flat[:, index].sum(axis=1) == rule.keep
    return masks[good]


def judge(
    polytope: Polytope, rule: Rule, point: torch.Tensor, gradient: torch.Tensor, given_point=None, **options
) -> None:
    vertex = polytope.face_lmo(gradient, point if given_point is None else given_point, **options)
    assert vertex.dtype == gradient.dtype and vertex.shape == gradient.shape
    for block, masks in enumerate(rule.blocks):
        part = slice(block * rule.height, (block + 1) * rule.height)
        face = on_face(rule, block, masks, point[part].numpy())
        got = vertex[part].numpy().astype(bool)
        assert ((vertex[part] == 0) | (vertex[part] == 1)).all()
        assert (face == got).all(axis=(1, 2)).any(), "not a vertex of the face"
        costs = (face * gradient[part].numpy()).sum(axis=(1, 2))
        assert (got * gradient[part].numpy()).sum() <= costs.min() + 1e-12 * (1 + abs(costs).max())


@pytest.mark.parametrize("kind", SETS)
@given(seed=SEEDS)
def test_no_vertex_of_the_face_costs_less(kind, seed):
    draw = Draw(seed)
    polytope, rule = make_set(kind, draw)
    if draw.whole(0, 2) == 0:
        kept, pruned = fixed_entries(rule, draw)
        polytope, rule = Face(polytope, kept, pruned), rule.fixing(kept, pruned)
    gradient = draw.normal(*rule.shape)
    judge(polytope, rule, random_point(rule, draw), gradient.round() if draw.whole(0, 2) == 0 else gradient)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("seed", range(20))
def test_the_tolerance_takes_small_and_nearly_full_entries_for_bounds(kind, seed):
    draw = Draw(seed)
    polytope, rule = make_set(kind, draw)
    point, gradient = random_point(rule, draw), draw.normal(*rule.shape)
    noisy = (point + draw.uniform(-1e-9, 1e-9, *rule.shape)).clamp(0, 1)
    judge(polytope, rule, point, gradient, given_point=noisy, tolerance=1e-7)


@pytest.mark.parametrize("kind", SETS)
def test_a_vertex_is_its_own_face(kind):
    for seed in range(10):
        draw = Draw(seed)
        polytope, rule = make_set(kind, draw)
        mask = polytope.round(draw.uniform(-1, 1, *rule.shape))
        vertex = polytope.face_lmo(draw.normal(*rule.shape), mask.double())
        count = mask.sum(dim=1)
        if not polytope.is_at_most():
            assert torch.equal(vertex.bool(), mask)
        assert (vertex.sum(dim=1) == count).all() or polytope.is_at_most()
        assert polytope.contains(vertex)


def test_a_tight_count_stays_tight_and_a_loose_one_does_not_bind():
    """All costs are positive, so only a tight count makes the oracle keep anything more than it must."""
    costs = torch.ones(2, 4)
    point = torch.tensor([[1.0, 0.5, 0.5, 0.0], [1.0, 0.5, 0.25, 0.0]])
    vertex = KSparse(2, at_most=True).face_lmo(costs, point)
    assert vertex.sum(dim=1).tolist() == [2, 1] and vertex[:, 0].tolist() == [1, 1] and vertex[:, 3].tolist() == [0, 0]
    groups = NM(1, 2, at_most=True).face_lmo(costs, torch.tensor([[0.5, 0.5, 0.5, 0.25], [1.0, 0.0, 0.0, 0.0]]))
    assert groups.view(2, 2, 2).sum(dim=2).tolist() == [[1, 0], [1, 0]]


def test_float32_sums_that_round_still_count_as_tight():
    draw = Draw(3)
    point = KSparse(300).round(draw.normal(4, 600)).double()
    for _ in range(30):
        point = 0.9 * point + 0.1 * KSparse(300).round(draw.normal(4, 600))
    vertex = KSparse(300, at_most=True).face_lmo(torch.ones(4, 600), point.float())
    assert vertex.sum(dim=1).tolist() == [300] * 4


def test_transposable_tiles_against_all_their_masks():
    polytope = TransposableNM(2, 4)
    masks = polytope.vertices((4, 4)).double()  # (90, 4, 4)
    for seed in range(40):
        draw = Draw(seed)
        picks = [masks[draw.whole(0, len(masks) - 1)] for _ in range(3)]
        point, gradient = 0.5 * picks[0] + 0.25 * picks[1] + 0.25 * picks[2], draw.normal(4, 4)
        vertex = polytope.face_lmo(gradient, point)
        face = masks[((masks == point) | ((point > 0) & (point < 1))).all(dim=2).all(dim=1)]
        assert bool((face == vertex).all(dim=2).all(dim=1).any())
        assert float((vertex * gradient).sum()) <= float((face * gradient).sum(dim=(1, 2)).min()) + 1e-12
