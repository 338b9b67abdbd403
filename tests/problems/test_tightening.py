"""The largest diagonal that may leave a Gram: against Clarabel on small ones, and by its promises on hard ones."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch

from relaxprune.problems import Gram
from relaxprune.problems.tightening import largest_tightening
from tests.random_problems import GRAMS, Draw, make_gram


def smallest_eigenvalue(gram: Gram, tightening: torch.Tensor) -> float:
    live = gram.diagonal > 0
    matrix = gram.correlation() - torch.diag(tightening[live])
    return float(torch.linalg.eigvalsh(matrix)[0]) if bool(live.any()) else 0.0


def best_by_clarabel(correlation: np.ndarray, worth: np.ndarray) -> float:
    tightening = cp.Variable(len(correlation))
    program = cp.Problem(cp.Maximize(worth @ tightening), [correlation - cp.diag(tightening) >> 0])
    program.solve(solver="CLARABEL")
    return float(program.value)


@pytest.mark.parametrize("cols", [3, 8, 20])
@pytest.mark.parametrize("even", [True, False])
def test_as_large_as_clarabel_finds_it(cols, even):
    draw = Draw(cols)
    gram = Gram(make_gram("gaussian", cols, draw))
    worth = torch.ones(cols, dtype=torch.float64) if even else draw.uniform(0.05, 2, cols)
    best = best_by_clarabel(gram.correlation().numpy(), worth.numpy())
    found = float(worth @ largest_tightening(gram, worth))
    assert 0.98 * best <= found <= best + 1e-6


@pytest.mark.parametrize("kind", GRAMS)
@pytest.mark.parametrize("cols", [5, 40, 160])
def test_what_is_left_is_semidefinite(kind, cols):
    """160 columns go through float32: what it finds is proven in float64 all the same."""
    draw = Draw(cols)
    gram = Gram(make_gram(kind, cols, draw))
    for worth in (None, draw.uniform(0, 1, cols) ** 6):
        tightening = largest_tightening(gram, worth)
        assert bool(torch.isfinite(tightening).all()) and not bool(tightening[gram.diagonal == 0].any())
        assert smallest_eigenvalue(gram, tightening) >= -1e-13 * cols


def test_uneven_weights_are_followed():
    draw = Draw(2)
    gram = Gram(make_gram("gaussian", 30, draw))
    worth = torch.ones(30, dtype=torch.float64)
    worth[:3] = 50
    assert float(largest_tightening(gram, worth)[:3].sum()) > float(largest_tightening(gram)[:3].sum())


def test_columns_that_are_correlated_with_none_leave_whole():
    draw = Draw(3)
    gram = make_gram("gaussian", 12, draw)
    gram[4] = gram[:, 4] = 0
    gram[4, 4] = 3.0
    assert float(largest_tightening(Gram(gram))[4]) == 1.0
