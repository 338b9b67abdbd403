from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from relaxprune import KSparse, RelaxPruneError
from relaxprune.problems import polytope_from_dict
from tests.enumeration import Rule
from tests.random_problems import Draw

# Options of the wrong kind, which a type checker would refuse.
HALF_COUNT: Any = 2.0
COLUMN: Any = "column"
WORD: Any = "half"
SEEDS = st.integers(0, 2**31)


def build(per: str, at_most: bool, draw: Draw) -> tuple[KSparse, Rule]:
    shape = (draw.whole(1, 3), draw.whole(1, 4))
    size = shape[1] if per == "row" else shape[0] * shape[1]
    keep = draw.whole(0, size)
    rule = Rule.layer(shape, keep, at_most) if per == "layer" else Rule.groups(shape, keep, size, at_most)
    return KSparse(keep, "layer" if per == "layer" else "row", at_most), rule


def best_vertex_value(rule: Rule, cost: torch.Tensor) -> float:
    blocks = cost.numpy().reshape(-1, rule.height, rule.shape[1])
    return float(sum((blocks[i] * masks).sum(axis=(1, 2)).min() for i, masks in enumerate(rule.blocks)))


def linear_program(rule: Rule, cost: torch.Tensor) -> float:
    counts = np.zeros((len(rule.cells), cost.numel()))
    for line, cell in enumerate(rule.cells):
        counts[line, list(cell)] = 1
    right = np.full(len(rule.cells), rule.keep)
    sides = {"A_ub": counts, "b_ub": right} if rule.at_most else {"A_eq": counts, "b_eq": right}
    return float(linprog(cost.numpy().ravel(), bounds=(0, 1), **sides).fun)


@pytest.mark.parametrize("per", ["row", "layer"])
@pytest.mark.parametrize("at_most", [False, True])
@given(seed=SEEDS, ties=st.booleans())
def test_the_oracle_is_a_vertex_of_least_cost(per, at_most, seed, ties):
    draw = Draw(seed)
    polytope, rule = build(per, at_most, draw)
    cost = draw.normal(*rule.shape)
    cost = cost.round() if ties else cost
    vertex = polytope.lmo(cost)
    assert vertex.dtype == cost.dtype
    assert rule.feasible(vertex.bool()) and bool(((vertex == 0) | (vertex == 1)).all())
    assert float((cost * vertex).sum()) == pytest.approx(best_vertex_value(rule, cost), abs=1e-12)
    assert float((cost * vertex).sum()) == pytest.approx(linear_program(rule, cost), abs=1e-9)


@pytest.mark.parametrize("per", ["row", "layer"])
@pytest.mark.parametrize("at_most", [False, True])
@given(seed=SEEDS, ties=st.booleans())
def test_rounding_is_the_nearest_mask_and_leaves_masks_alone(per, at_most, seed, ties):
    draw = Draw(seed)
    polytope, rule = build(per, at_most, draw)
    point = draw.uniform(0, 1, *rule.shape)
    point = (2 * point).round() / 2 if ties else point
    mask = polytope.round(point)
    assert mask.dtype == torch.bool and rule.feasible(mask) and polytope.contains(mask)
    # "At most" keeps the largest entries above 0, and so is the nearest in its own sense; exact counts are the nearest.
    kept_sum = float((point * mask).sum())
    assert kept_sum == pytest.approx(-best_vertex_value(rule, -point), abs=1e-12)
    assert torch.equal(polytope.round(mask.double()), mask)


def test_ties_go_to_the_lowest_column():
    row = torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0, 1.0]])
    assert KSparse(4).round(row).tolist() == [[True, True, True, False, True, False]]
    assert KSparse(3).round(torch.ones(2, 5)).tolist() == [[True, True, True, False, False]] * 2
    assert KSparse(4, per="layer").round(torch.ones(2, 3)).tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("per", ["row", "layer"])
@pytest.mark.parametrize("at_most", [False, True])
def test_keep_nothing_and_keep_everything(device, dtype, per, at_most):
    shape = (3, 5)
    cost = -torch.rand(shape, device=device).to(dtype) - 0.1
    none, everything = KSparse(0, per, at_most), KSparse(5 if per == "row" else 15, per, at_most)
    assert not none.lmo(cost).any() and not none.round(-cost).any()
    assert everything.lmo(cost).all() and everything.round(-cost).all()
    assert everything.lmo(cost).dtype == dtype and everything.lmo(cost).device == cost.device
    assert none.kept(shape) == 0 and everything.kept(shape) == 15


def test_at_most_keeps_only_what_pays():
    cost = torch.tensor([[-1.0, 0.0, 2.0, -3.0], [1.0, 1.0, 1.0, 1.0]])
    assert KSparse(3, at_most=True).lmo(cost).tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]
    assert KSparse(3, at_most=True).round(-cost).sum().item() == 2
    assert KSparse(3, at_most=True).is_at_most() and not KSparse(3).is_at_most()


def test_infinite_costs_force_entries():
    cost = torch.tensor([[torch.inf, 0.0, 1.0, -torch.inf], [-torch.inf, 5.0, torch.inf, torch.inf]])
    assert KSparse(2).lmo(cost).tolist() == [[0, 1, 0, 1], [1, 1, 0, 0]]


@given(seed=SEEDS)
def test_contains_counts_box_and_tolerance(seed):
    draw = Draw(seed)
    polytope, rule = build(draw.pick(("row", "layer")), bool(draw.whole(0, 1)), draw)
    mask = draw.bits(0.5, *rule.shape)
    assert polytope.contains(mask) == rule.feasible(mask)
    vertices = [polytope.lmo(draw.normal(*rule.shape)) for _ in range(3)]
    middle = torch.stack(vertices).mean(dim=0)
    assert polytope.contains(middle, 1e-9)
    assert not polytope.contains(middle + 1.5, 1e-9) and not polytope.contains(middle - 1.5, 1e-9)
    assert not polytope.contains(middle * torch.nan)


@pytest.mark.parametrize(
    ("sparsity", "cols", "pruned"),
    [
        (0.5, 576, 288),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.7, 10, 7),
        (1 / 3, 10, 3),
        (0.0, 7, 0),
        (1.0, 7, 7),
        (1, 4, 4),
    ],
)
def test_sparsity_is_the_pruned_fraction_rounded_down(sparsity, cols, pruned):
    assert KSparse.from_sparsity(sparsity, (4, cols)).keep == cols - pruned


def test_sparsity_over_the_layer():
    polytope = KSparse.from_sparsity(0.5, (3, 5), per="layer", at_most=True)
    assert polytope == KSparse(8, per="layer", at_most=True)
    assert polytope.kept((3, 5)) == 8 and KSparse(2).kept((3, 5)) == 6
    assert polytope.rows_per_block((3, 5)) == 3 and KSparse(2).rows_per_block((3, 5)) == 1
    assert polytope.block_count((3, 5)) == 1 and KSparse(2).block_count((3, 5)) == 3


@pytest.mark.parametrize("polytope", [KSparse(3), KSparse(7, "layer"), KSparse(1, "row", True)])
def test_a_dictionary_and_back(polytope):
    assert polytope_from_dict(polytope.to_dict()) == polytope


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KSparse(-1), "keep must be a whole number of at least 0, got -1"),
        (lambda: KSparse(HALF_COUNT), "keep must be a whole number"),
        (lambda: KSparse(True), "keep must be a whole number"),
        (lambda: KSparse(2, per=COLUMN), "per must be one of row, layer, got 'column'"),
        (lambda: KSparse(5).validate((3, 4)), "keep is 5, but each row of a 3 x 4 weight has 4"),
        (lambda: KSparse(13, "layer").validate((3, 4)), "keep is 13, but the matrix of a 3 x 4 weight has 12"),
        (lambda: KSparse.from_sparsity(1.5, (3, 4)), "sparsity must lie in [0, 1]"),
        (lambda: KSparse.from_sparsity(-0.1, (3, 4)), "sparsity must lie in [0, 1]"),
        (lambda: KSparse.from_sparsity(float("nan"), (3, 4)), "sparsity must lie in [0, 1]"),
        (lambda: KSparse.from_sparsity(WORD, (3, 4)), "sparsity must lie in [0, 1]"),
        (lambda: polytope_from_dict({"kind": "sphere"}), "polytope kind is 'sphere'"),
        (lambda: polytope_from_dict({"kind": []}), "polytope kind is []"),
        (lambda: polytope_from_dict([]), "polytope must be described by an object, got a list"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(make, words):
    with pytest.raises(RelaxPruneError) as refused:
        make()
    assert words in str(refused.value) and "\n" not in str(refused.value)
