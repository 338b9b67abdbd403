"""The oracle that answers nearly: always a point of the set, and near to the vertex on gradients that change slowly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import KSparse
from tests.random_problems import Draw

SCALES = (1.0, 1e-12, 1e12)
KINDS = ("smooth", "ties", "two values", "outliers", "all alike", "zero rows")


def gradient(kind: str, rows: int, cols: int, draw: Draw) -> torch.Tensor:
    """A (rows, cols) float32 gradient of the kind."""
    values = draw.normal(rows, cols)
    if kind == "ties":
        return values.round()
    if kind == "two values":
        return values.sign()
    if kind == "outliers":
        return torch.where(draw.normal(rows, cols) > 1.5, 1e6 * values, values)
    if kind == "all alike":
        return torch.ones(rows, cols)
    if kind == "zero rows":
        values[::2] = 0
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("polytope", [KSparse(70), KSparse(1), KSparse(160), KSparse(0), KSparse(70, at_most=True)])
@given(seed=st.integers(0, 2**31))
def test_always_in_the_set(kind, polytope, seed):
    draw = Draw(seed)
    first, second = (gradient(kind, 4, 160, draw) * draw.pick(SCALES) for _ in range(2))
    hint = None
    for number in range(24):
        scores = first if number % 12 < 6 else second
        point, hint = polytope.near_lmo(scores, hint)
        assert polytope.contains(point, 1e-5), (kind, number)
        uniform = scores.mean(dim=1) * point.sum(dim=1)
        assert bool(((scores * point).sum(dim=1) <= uniform + 1e-4 * scores.abs().sum(dim=1)).all()), (kind, number)
        assert hint is None or bool(torch.isfinite(hint).all()), (kind, number)


@pytest.mark.parametrize("kind", ["smooth", "outliers"])
@pytest.mark.parametrize("per", ["row", "layer"])
def test_near_to_the_vertex_while_the_gradient_changes_slowly(kind, per):
    draw = Draw(3)
    polytope = KSparse(128 if per == "row" else 128 * 8, per=per)
    scores, change, hint = gradient(kind, 8, 256, draw), draw.normal(8, 256), None
    for number in range(30):
        point, hint = polytope.near_lmo(scores, hint)
        best = polytope.lmo(scores)
        spread = (scores * best).sum() - (scores * polytope.lmo(-scores)).sum()
        assert float((scores * (point - best)).sum()) <= 0.01 * float(spread.abs()), number
        scores = scores + 0.05 * change


def test_whole_vertices_where_few_entries_are_near_the_threshold():
    polytope, draw = KSparse(80), Draw(4)
    scores = torch.cat([draw.normal(3, 80) - 10, draw.normal(3, 80) + 10], dim=1)
    _, hint = polytope.near_lmo(scores)
    for _ in range(5):
        point, hint = polytope.near_lmo(scores, hint)
    assert torch.equal(point, polytope.lmo(scores))


def test_accelerators_select_rows_and_search_a_whole_layer():
    """Told by what comes back, on torch's device without data: a search leaves a hint."""
    scores = torch.empty(4, 256, device="meta")
    assert KSparse(128).near_lmo(scores)[1] is None
    assert KSparse(512, per="layer").near_lmo(scores)[1] is not None
    assert KSparse(128).near_lmo(torch.ones(4, 256))[1] is not None
