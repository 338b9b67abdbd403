from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import KSparse, RelaxPruneError
from relaxprune.problems import NM, Face
from tests.random_problems import random_case


@given(seed=st.integers(0, 2**31))
def test_vertices_are_the_masks_counted_by_hand(seed):
    case = random_case(seed)
    polytope, height = case.problem.polytope, case.rule.height
    for number, expected in enumerate(case.rule.blocks):
        part = torch.arange(number * height, (number + 1) * height)
        piece = polytope if height == case.problem.shape[0] else polytope.rows(part)
        found = piece.vertices((height, case.problem.shape[1]))
        assert found.dtype == torch.bool
        assert sorted(mask.flatten().tolist() for mask in found) == sorted(mask.flatten().tolist() for mask in expected)


def test_one_block_of_a_matrix_of_many_rows():
    assert KSparse(2).vertices((7, 5)).shape == (10, 1, 5)
    assert NM(2, 4).vertices((3, 8)).shape == (36, 1, 8)
    assert KSparse(3, "layer").vertices((2, 3)).shape == (20, 2, 3)
    assert KSparse(1, at_most=True).vertices((1, 4)).shape == (5, 1, 4)
    assert KSparse(3, at_most=True).vertices((1, 3)).shape == (8, 1, 3)


def test_too_many_masks_are_refused_with_the_limit():
    assert len(KSparse(10).vertices((1, 20))) == 184756
    with pytest.raises(RelaxPruneError, match="1048576"):
        KSparse(30).vertices((1, 60))


def test_a_face_of_many_blocks_is_refused():
    fixed = torch.zeros(2, 4, dtype=torch.bool)
    fixed[0, 0] = True
    face = Face(KSparse(2), fixed, None)
    assert face.rows(slice(0, 1)).vertices((1, 4)).shape == (3, 1, 4)
    with pytest.raises(RelaxPruneError, match="one coupled block"):
        face.vertices((2, 4))
