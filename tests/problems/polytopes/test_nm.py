from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import NM, RelaxPruneError
from relaxprune.problems import polytope_from_dict
from tests.enumeration import Rule
from tests.random_problems import Draw

from .test_ksparse import best_vertex_value, linear_program

NOT_TEXT: Any = 24
SEEDS = st.integers(0, 2**31)


def build(at_most: bool, draw: Draw) -> tuple[NM, Rule]:
    group = draw.whole(1, 12)  # both ways of selecting: small groups by pairs, wide ones by topk
    shape = (draw.whole(1, 3), group * draw.whole(1, max(1, 8 // group)))
    keep = draw.whole(0, group)
    return NM(keep, group, at_most), Rule.groups(shape, keep, group, at_most)


@pytest.mark.parametrize("at_most", [False, True])
@given(seed=SEEDS, ties=st.booleans())
def test_the_oracle_is_a_vertex_of_least_cost(at_most, seed, ties):
    draw = Draw(seed)
    polytope, rule = build(at_most, draw)
    cost = draw.normal(*rule.shape)
    cost = cost.round() if ties else cost
    vertex = polytope.lmo(cost)
    assert vertex.dtype == cost.dtype
    assert rule.feasible(vertex.bool()) and bool(((vertex == 0) | (vertex == 1)).all())
    assert float((cost * vertex).sum()) == pytest.approx(best_vertex_value(rule, cost), abs=1e-12)
    assert float((cost * vertex).sum()) == pytest.approx(linear_program(rule, cost), abs=1e-9)


@pytest.mark.parametrize("at_most", [False, True])
@given(seed=SEEDS, ties=st.booleans())
def test_rounding_keeps_the_largest_of_each_group(at_most, seed, ties):
    draw = Draw(seed)
    polytope, rule = build(at_most, draw)
    point = draw.uniform(0, 1, *rule.shape)
    point = (2 * point).round() / 2 if ties else point
    mask = polytope.round(point)
    assert mask.dtype == torch.bool and rule.feasible(mask) and polytope.contains(mask)
    assert float((point * mask).sum()) == pytest.approx(-best_vertex_value(rule, -point), abs=1e-12)
    assert torch.equal(polytope.round(mask.double()), mask)
    moved = draw.bits(0.5, *rule.shape)
    assert polytope.contains(moved) == rule.feasible(moved)


@pytest.mark.parametrize("group", [4, 16])
def test_ties_go_to_the_lowest_column(group):
    mask = NM(2, group).round(torch.ones(3, 2 * group))
    assert mask.view(3, 2, group)[..., :2].all() and mask.sum().item() == 12
    assert NM(2, 4).round(torch.tensor([[0.0, 1.0, 1.0, 1.0]])).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("group", [4, 16])
def test_wide_and_narrow_groups_agree_without_ties(group, device):
    cost = torch.randn(5, 3 * group, device=device)
    by_round = NM(3, group).round(-cost)
    assert torch.equal(NM(3, group).lmo(cost).bool(), by_round)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("at_most", [False, True])
def test_keep_nothing_and_keep_everything(device, dtype, at_most):
    cost = -torch.rand(3, 12, device=device).to(dtype) - 0.1
    for group in (4, 12):
        none, everything = NM(0, group, at_most), NM(group, group, at_most)
        assert not none.lmo(cost).any() and not none.round(-cost).any()
        assert everything.lmo(cost).all() and everything.round(-cost).all()
        assert everything.lmo(cost).dtype == dtype


@pytest.mark.parametrize("group", [4, 12])
def test_infinite_costs_force_entries(group):
    cost = torch.zeros(2, group)
    cost[0, 0], cost[1, 1], cost[1, 2] = torch.inf, -torch.inf, -torch.inf
    vertex = NM(2, group).lmo(cost)
    assert vertex[0, 0] == 0 and vertex[1, 1] == 1 and vertex[1, 2] == 1 and vertex.sum().item() == 4


def test_a_pattern_counts_the_kept():
    assert NM.from_pattern("2:4") == NM(2, 4)
    assert NM.from_pattern(" 1 : 4 ") == NM(keep=1, group=4)
    assert NM(1, 4).kept((3, 8)) == 6 and NM(1, 4).group_size((3, 8)) == 4
    assert polytope_from_dict(NM(1, 4, at_most=True).to_dict()) == NM(1, 4, at_most=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NM(5, 4), "keep is 5, but a group has only 4 columns"),
        (lambda: NM(-1, 4), "keep must be a whole number"),
        (lambda: NM(1, 0), "group must be a whole number of at least 1, got 0"),
        (lambda: NM(2, 4).validate((3, 10)), "group is 4, which does not divide the 10 columns"),
        (lambda: NM.from_pattern("2-4"), 'pattern must look like "2:4"'),
        (lambda: NM.from_pattern("5:4"), "keep is 5"),
        (lambda: NM.from_pattern(NOT_TEXT), 'pattern must look like "2:4"'),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(make, words):
    with pytest.raises(RelaxPruneError) as refused:
        make()
    assert words in str(refused.value) and "\n" not in str(refused.value)
