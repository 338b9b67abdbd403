"""Tied scores: rounding has a rule, the oracle returns one of the tied vertices, the same for the same input."""

from __future__ import annotations

import pytest
import torch

from relaxprune import NM, KSparse
from relaxprune.problems import Face, TransposableNM

SHAPE = (16, 48)
FIXED = torch.zeros(SHAPE, dtype=torch.bool)
FIXED[3::4, 7] = True
RULED = {
    "row": KSparse(20),
    "row at most": KSparse(20, at_most=True),
    "layer": KSparse(300, "layer"),
    "2:4": NM(2, 4),
    "8:24": NM(8, 24),
    "8:24 at most": NM(8, 24, at_most=True),
}
ALL = {**RULED, "transposable": TransposableNM(2, 4)}
ALL |= {f"face of {name}": Face(base, FIXED, FIXED.roll(3, dims=1)) for name, base in ALL.items()}


def scores(levels, generator):
    """Few distinct positive values: ties in every row and group."""
    return torch.randint(1, levels + 1, SHAPE, generator=generator).float()


def lowest_first(values, cells, keep):
    """The rule written out: sort each cell by value, then by index."""
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    flat = values.flatten().tolist()
    for cell in cells:
        mask[sorted(cell, key=lambda index: (-flat[index], index))[:keep]] = True
    return mask.view(values.shape)


def cells_of(polytope):
    size = SHAPE[0] * SHAPE[1]
    width = size if polytope.rows_per_block(SHAPE) > 1 else polytope.group_size(SHAPE)
    return [range(start, start + width) for start in range(0, size, width)]


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("name", RULED)
def test_rounding_keeps_the_lowest_index_of_tied_entries(name, levels, generator):
    values, polytope = scores(levels, generator), RULED[name]
    assert torch.equal(polytope.round(values), lowest_first(values, cells_of(polytope), polytope.keep))


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("name", RULED)
def test_rounding_in_a_face_follows_the_same_rule_after_the_fixed_entries(name, levels, generator):
    values, face = scores(levels, generator), ALL[f"face of {name}"]
    kept, pruned = face.fixed()
    forced = values.masked_fill(kept, 100.0).masked_fill(pruned, -100.0)
    assert torch.equal(face.round(values), lowest_first(forced, cells_of(face), face.base.keep))


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("name", ALL)
def test_the_oracle_returns_a_tied_vertex_and_the_same_for_the_same_input(name, levels, generator):
    gradient, polytope = -scores(levels, generator), ALL[name]
    vertex = polytope.lmo(gradient)
    assert polytope.contains(vertex.bool())
    assert float((gradient * vertex).sum()) == float((gradient * polytope.round(-gradient)).sum())
    assert all(torch.equal(polytope.lmo(gradient.clone()), vertex) for _ in range(5))
    assert torch.equal(polytope.round(-gradient), polytope.round(-gradient.clone()))
