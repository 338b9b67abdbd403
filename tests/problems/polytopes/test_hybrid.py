"""Hybrid sets against every mask of tiny ones, and against the inequalities of their hull."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from relaxprune import NM, Hybrid, RelaxPruneError
from relaxprune.options import Target
from relaxprune.problems import Face, polytope_from_dict
from tests.enumeration import Array, HybridRule
from tests.random_problems import Draw, fixed_entries

SEEDS = st.integers(0, 2**31)
TILES = (Hybrid(1, 2, 1), Hybrid(2, 3, 1), Hybrid(0, 3, 2), Hybrid(1, 3, 1, tile=2), Hybrid(1, 2, 0), Hybrid(3, 4, 3))
SHAPES = ((3, 4), (2, 6), (3, 3), (4, 3), (3, 4), (3, 4))


def drawn(draw: Draw) -> tuple[Hybrid, HybridRule]:
    """A small set and its rule."""
    place = draw.whole(0, len(TILES) - 1)
    one, shape = TILES[place], SHAPES[place]
    return one, HybridRule.of(shape, one.keep, one.group, one.dense, one.tile)


def values(masks: Array, costs: Tensor) -> Array:
    return (masks * costs.numpy()).sum(axis=(1, 2))


@pytest.mark.parametrize(("one", "shape"), list(zip(TILES, SHAPES, strict=True)), ids=repr)
def test_its_masks_are_those_of_the_rule(one, shape):
    one.validate(shape)
    masks = HybridRule.of(shape, one.keep, one.group, one.dense, one.tile).blocks[0]
    found = one.vertices(shape)
    assert {mask.numpy().tobytes() for mask in found} == {mask.tobytes() for mask in masks}
    assert len(found) == len(masks) and all(one.contains(mask) for mask in found)
    assert {int(mask.sum()) for mask in found} == {one.kept(shape)}


@given(seed=SEEDS)
def test_oracle_and_rounding_are_exact_on_every_face(seed):
    draw = Draw(seed)
    base, rule = drawn(draw)
    kept, pruned = fixed_entries(rule, draw) if draw.whole(0, 1) else (None, None)
    face = base if kept is None and pruned is None else Face(base, kept, pruned)
    rule = rule.fixing(kept, pruned)
    face.validate(rule.shape)
    costs = draw.normal(*rule.shape)
    costs = costs.round() if draw.whole(0, 2) == 0 else costs
    vertex = face.lmo(costs)
    best = values(rule.blocks[0], costs).min()
    assert rule.feasible(vertex.bool()) and vertex.dtype == costs.dtype
    assert float((costs * vertex).sum()) == pytest.approx(best, abs=1e-12)
    assert float(face.lmo_bound(costs)) == pytest.approx(best, abs=1e-12)
    rounded = face.round(-costs)
    assert rule.feasible(rounded) and float((costs * rounded).sum()) == pytest.approx(best, abs=1e-12)
    bits = draw.bits(0.7, *rule.shape)
    assert face.contains(bits) == rule.feasible(bits)


@given(seed=SEEDS)
def test_the_hull_holds_the_mixes_of_masks_and_nothing_else(seed):
    draw = Draw(seed)
    one, rule = drawn(draw)
    masks = torch.from_numpy(rule.blocks[0]).double()
    share = draw.uniform(0, 1, len(masks)).pow(4)
    point = (masks * (share / share.sum()).view(-1, 1, 1)).sum(dim=0)
    assert one.contains(point, 1e-9)
    other = point + 0.2 * draw.normal(*rule.shape) * draw.bits(0.3, *rule.shape)
    if one.contains(other, 1e-9):  # then it must be a mix of masks: a linear program finds which
        equal = np.concatenate([masks.flatten(1).T.numpy(), np.ones((1, len(masks)))])
        goal = np.append(other.flatten().numpy(), 1.0)
        assert linprog(np.zeros(len(masks)), A_eq=equal, b_eq=goal).status == 0


@given(seed=SEEDS)
def test_no_vertex_of_the_minimal_face_costs_less(seed):
    draw = Draw(seed)
    one, rule = drawn(draw)
    masks = rule.blocks[0]
    picks = [masks[draw.whole(0, len(masks) - 1)] for _ in range(4)]
    shares = ((1, 0, 0, 0), (0.5, 0.5, 0, 0), (0.25, 0.25, 0.25, 0.25))[draw.whole(0, 2)]
    point = sum(share * pick.astype(float) for share, pick in zip(shares, picks, strict=True))
    costs = draw.normal(*rule.shape)
    vertex = one.face_lmo(costs, torch.from_numpy(point)).numpy().astype(bool)
    face = np.array([mask for mask in masks if _tight(one, point) <= _tight(one, mask.astype(float))])
    assert (face == vertex).all(axis=(1, 2)).any(), "not a vertex of the face"
    assert values(vertex[None], costs)[0] == pytest.approx(values(face, costs).min(), abs=1e-12)


def _tight(one: Hybrid, point: Array) -> set[tuple[str, int, int]]:
    """The inequalities of the hull that hold with equality: m ≤ 1, y ≤ m, 0 ≤ y, by their place."""
    share = (point[:, : one.group].sum(axis=1) - one.keep) / (one.group - one.keep)
    ends = {("one", int(i), int(j)) for i, j in np.argwhere(point == 1)}
    share = np.round(share, 12)
    ends |= {("dense share", int(i), int(j)) for i, j in np.argwhere(np.round(point, 12) == share[:, None])}
    return ends | {("not dense", int(i), 0) for i in np.flatnonzero(share == 0)}


@given(seed=SEEDS)
def test_the_choice_saves_most(seed):
    draw = Draw(seed)
    one = Hybrid(1, 2, 2, tile=draw.whole(1, 2))
    saved = draw.normal(4 * one.tile)
    tiles = one.choice(saved).view(4, one.tile)
    assert int(tiles.all(dim=1).sum()) == int(tiles.any(dim=1).sum()) == 2
    sums = saved.view(4, one.tile).sum(dim=1)
    assert float(sums[tiles.any(dim=1)].sum()) == pytest.approx(float(sums.topk(2).values.sum()))


def test_from_a_share_or_a_sparsity():
    assert Hybrid.from_share("2:4", 0.3, (10, 8)) == Hybrid(2, 4, 3)
    assert Hybrid.from_sparsity("2:4", 0.25, (8, 8), tile=2) == Hybrid(2, 4, 2, tile=2)
    assert Hybrid.from_sparsity("1:4", 0.5, (9, 8)) == Hybrid(1, 4, 3)
    for sparsity in (0.1, 0.29, 0.37, 0.5):
        one, shape = Hybrid.from_sparsity("2:4", sparsity, (64, 32)), (64, 32)
        assert 1 - one.kept(shape) / 2048 >= sparsity > 1 - Hybrid(2, 4, one.dense + 1).kept(shape) / 2048
    assert Target(pattern="2:4,dense=0.25").polytope_of("q", (8, 8)) == Hybrid(2, 4, 2)
    assert Target(pattern=" 2:4, dense=25%, tile=4").polytope_of("q", (16, 8)) == Hybrid(2, 4, 1, tile=4)
    target = Target(pattern="2:4,dense=0.25")
    assert Target.from_dict(target.to_dict()) == target and target.n_of_m is None and target.fraction((8, 8)) == 0.375
    assert target.apart == Target(pattern="2:4") and Target(pattern="1:2").apart == Target(pattern="1:2")
    one = Hybrid(2, 4, 1, tile=4)
    assert Target(polytope=one).apart == Target(polytope=NM(2, 4)) and Target(0.5).apart == Target(0.5)
    assert polytope_from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Hybrid(4, 4, 1), "keep must be below group in a hybrid set, got 4 of 4"),
        (lambda: Hybrid(2, 4, -1), "dense must be a whole number"),
        (lambda: Hybrid(2, 4, 1, tile=0), "tile must be a whole number"),
        (lambda: Hybrid(2, 4, 3, tile=2).validate((4, 8)), "dense is 3, but the weight has 2 tiles of rows"),
        (lambda: Hybrid(2, 4, 1, tile=3).validate((4, 8)), "tile is 3, which does not divide the 4 rows"),
        (lambda: Hybrid(2, 4, 1).validate((4, 6)), "group is 4, which does not divide the 6 columns"),
        (lambda: Hybrid.from_sparsity("2:4", 0.6, (4, 8)), "sparsity is 0.6, but 2:4 prunes no more than 0.5"),
        (lambda: Target(pattern="2:4,dens=0.5"), 'pattern must look like "2:4" or "2:4,dense=0.25,tile=64"'),
        (lambda: Target(pattern="2:4,dense=1.5"), "must be a share from 0 to 1, got 1.5"),
        (lambda: Target(pattern="2:4,dense=much"), "must be a share from 0 to 1, got much"),
        (lambda: Target(pattern="dense=0.5"), 'pattern must look like "2:4" or "2:4,dense=0.25,tile=64"'),
        (lambda: Target(pattern="4:4,dense=.5"), "pattern '4:4,dense=.5' prunes nothing"),
        (lambda: Target(pattern="24,dense=0.5"), "pattern must look like"),
        (lambda: Hybrid(2, 4, 1).rows(slice(0, 1)), "couples all rows"),
        (lambda: Hybrid(2, 4, 1).cells((4, 8)), "no counts that all of its masks share"),
        (lambda: Hybrid(2, 4, 1).vertices((64, 64)), "at most 1048576 masks"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(make, words):
    with pytest.raises(RelaxPruneError, match=re.escape(words)) as refused:
        make()
    assert "\n" not in str(refused.value)
