from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import KSparse, MaskProblem, RelaxPruneError, solve
from relaxprune.problems import Gram
from relaxprune.problems.neighbours import Neighbours
from relaxprune.solving.solving import least_memory
from tests.random_problems import GRAMS, Draw, make_gram

SEEDS = st.integers(0, 2**31)


def with_smallest_eigenvalue(value: float, cols: int = 6) -> torch.Tensor:
    """A correlation matrix whose smallest eigenvalue is ``value``: rank one, shifted."""
    shift = -value
    return (1 + shift) * torch.ones(cols, cols, dtype=torch.float64) - shift * torch.eye(cols, dtype=torch.float64)


@pytest.mark.parametrize("kind", GRAMS)
@given(seed=SEEDS)
def test_the_proof_holds_in_exact_terms(kind, seed):
    """G + shift Diag(G) must be PSD; a claim of PSD without any shift must be true too."""
    draw = Draw(seed)
    matrix = make_gram(kind, draw.whole(2, 10), draw)
    gram = Gram(matrix)
    proof = gram.proof
    assert proof.shift >= 0 and proof.psd == (proof.shift == 0) and proof.slack >= 0
    live = gram.diagonal > 0
    inner = gram.matrix.to(torch.float64)[live][:, live]
    root = inner.diagonal().sqrt()
    correlation = inner / root / root.unsqueeze(1)
    shifted = correlation + proof.shift * torch.eye(len(correlation), dtype=torch.float64)
    if len(shifted):
        # The judge here rounds too; its own error is n² units.
        assert float(torch.linalg.eigvalsh(shifted)[0]) >= -(len(shifted) ** 2) * 2.0**-52
    assert proof.shift <= 1e-3 + 1e-9


def test_a_clear_gram_needs_no_shift_and_no_eigenvalues():
    proof = Gram(torch.eye(8) + 0.5).proof
    assert proof.psd and proof.shift == 0 and proof.method == "cholesky" and proof.smallest_eigenvalue is None


@pytest.mark.parametrize("value", [-1e-6, -5e-4, -9e-4])
def test_a_little_below_zero_is_accepted_and_shifted(value):
    proof = Gram(with_smallest_eigenvalue(value)).proof
    assert not proof.psd and -value <= proof.shift <= -value + 1e-9
    assert proof.smallest_eigenvalue == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("value", [-1.1e-3, -0.1])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_clearly_below_zero_is_refused_whatever_the_scale(value, scale):
    spread = torch.logspace(-3, 3, 6, dtype=torch.float64)
    matrix = with_smallest_eigenvalue(value) * spread * spread.unsqueeze(1) * scale
    with pytest.raises(RelaxPruneError, match=r"gram must be positive semidefinite.*smallest eigenvalue"):
        _ = Gram(matrix).proof


def test_float_noise_is_averaged_and_leaves_the_objective():
    clean = make_gram("gaussian", 5, Draw(1))
    noise = 1e-6 * torch.randn(5, 5, dtype=torch.float64)
    gram = Gram(clean + (noise - noise.T) * clean.abs())
    assert torch.equal(gram.matrix, gram.matrix.T)
    assert torch.allclose(gram.matrix, clean, rtol=1e-12)


def test_the_callers_matrix_is_left_alone():
    matrix = make_gram("float32 noise", 6, Draw(2))
    before = matrix.clone()
    _ = Gram(matrix).proof
    assert torch.equal(matrix, before)


@pytest.mark.parametrize(
    ("dtype", "inside"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_dtypes(dtype, inside, device):
    gram = Gram(torch.eye(4, dtype=dtype, device=device) * 3)
    assert gram.matrix.dtype == inside and gram.scale == 3.0 and gram.cols == 4
    assert gram.matrix.device.type == device.type and gram.proof.psd


def test_dead_columns_and_the_zero_matrix_are_valid():
    matrix = torch.diag(torch.tensor([1.0, 0.0, 2.0]))
    matrix[0, 2] = matrix[2, 0] = 0.5
    assert Gram(matrix).proof.psd
    zero = Gram(torch.zeros(3, 3))
    assert zero.proof.psd and zero.scale == 1.0


def changed(i: int, j: int, value: float) -> torch.Tensor:
    matrix = torch.eye(4)
    matrix[i, j] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (torch.ones(3, 4), "gram must be a square (cols, cols) tensor, got (3, 4)"),
        (torch.ones(3), "gram must be a square"),
        ([[1.0]], "gram must be a square (cols, cols) tensor, got list"),
        (torch.eye(3, dtype=torch.int64), "gram must hold floats"),
        (changed(1, 1, float("nan")), "gram holds NaN or Inf"),
        (changed(1, 2, float("inf")), "gram holds NaN or Inf"),
        (changed(0, 1, 0.25), "gram must be symmetric, but gram[0, 1] is 0.25 and gram[1, 0] is 0"),
        (changed(2, 2, -1.0), "its diagonal is -1 at column 2"),
        (changed(2, 2, 0.0) + 0.1 * (1 - torch.eye(4)), "column 2 has a zero diagonal and non-zero entries"),
        (torch.eye(2) + 3 * (1 - torch.eye(2)), "gram must be positive semidefinite"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(matrix, words):
    with pytest.raises(RelaxPruneError) as refused:
        _ = Gram(matrix).proof
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_row_blocks_share_one_wide_copy_and_one_search_for_neighbours(monkeypatch):
    searched = []
    of = Neighbours.of
    monkeypatch.setattr(Neighbours, "of", lambda gram: (searched.append(gram.shape), of(gram))[1])
    problem = MaskProblem(torch.randn(6, 8), torch.eye(8) + 0.5, KSparse(4))
    parts = [problem.rows(slice(start, start + 2)).working(torch.float64) for start in (0, 2, 4)]
    assert len({part.gram.data_ptr() for part in parts}) == 1
    budget = least_memory(problem, "swap")
    solve(problem, "swap", memory_budget_bytes=budget)
    solve(problem.over(KSparse(3)), "swap", memory_budget_bytes=budget)
    assert searched == [(8, 8)]


def test_a_wide_copy_is_freed_with_the_last_that_uses_it():
    gram = Gram(torch.eye(8))
    copy = gram.in_dtype(torch.float64)
    assert gram.in_dtype(torch.float64) is copy and gram.in_dtype(torch.float32) is gram.matrix
    alive = weakref.ref(copy)
    del copy
    assert alive() is None


def test_a_neighbour_is_more_correlated_than_all_that_are_none():
    matrix = make_gram("scaled", 40, Draw(1))
    neighbours = Gram(matrix).neighbours
    root = matrix.diagonal().sqrt()
    correlation = (matrix / root / root.unsqueeze(1)).abs().fill_diagonal_(0)
    others = correlation.scatter(1, neighbours.index, 0.0)
    assert bool((others.amax(dim=1) <= neighbours.rest).all())
    assert bool((correlation.gather(1, neighbours.index).amin(dim=1) >= neighbours.rest * (1 - 1e-5)).all())
