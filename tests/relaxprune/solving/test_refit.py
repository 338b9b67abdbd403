"""Weights refitted on a mask, against least squares on the data that the Grams are of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import (
    NM,
    KSparse,
    QuadraticProblem,
    ReconstructionProblem,
    RelaxPruneError,
    refit,
    solve,
)
from relaxprune.problems import Gram
from relaxprune.solvers.weights.engine import least_squares
from relaxprune.solvers.weights.engine.least_squares import LeastSquares
from tests.random_problems import GRAMS, Draw, make_gram


def data(rows: int = 6, cols: int = 16, tokens: int = 60, seed: int = 0):
    draw = Draw(seed)
    inputs = draw.normal(tokens, cols).double() @ (torch.eye(cols).double() + 0.3 * draw.normal(cols, cols).double())
    return draw.normal(rows, cols).double(), inputs


def best(inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Least squares of each row on its own columns, by numpy."""
    weight = torch.zeros(mask.shape, dtype=torch.float64)
    for row in range(len(mask)):
        columns = mask[row].nonzero().squeeze(1)
        found = np.linalg.lstsq(inputs[:, columns].numpy(), outputs[:, row].numpy(), rcond=None)[0]
        weight[row, columns] = torch.from_numpy(found)
    return weight


@pytest.mark.parametrize("polytope", [KSparse(8), KSparse(48, per="layer"), NM(2, 4), KSparse(0), KSparse(16)])
@pytest.mark.parametrize("direct", [1024, 0])
def test_the_weights_are_those_of_least_squares(polytope, direct, monkeypatch):
    monkeypatch.setattr(least_squares, "DIRECT_COLUMNS", direct)
    weight, inputs = data()
    problem = ReconstructionProblem(weight, inputs.T @ inputs / len(inputs), polytope)
    mask = solve(problem.mask_problem, "wanda").mask
    found = refit(problem, mask)
    expected = best(inputs, inputs @ weight.T, mask)
    assert torch.allclose(found.weight, expected, rtol=1e-5, atol=1e-5)
    assert bool((found.weight[~mask] == 0).all()) and bool((found.damping == 0).all())
    assert float(found.residual.max()) < 1.001e-5
    lost = (inputs @ (weight - expected).T).square().sum() / len(inputs)
    assert found.objective == pytest.approx(float(lost), rel=1e-8, abs=1e-12)
    assert found.objective <= found.kept_objective + 1e-12


def test_cross_terms_aim_at_the_dense_output():
    weight, dense = data(seed=1)
    inputs = dense + 0.3 * Draw(2).normal(*dense.shape).double()  # what the pruned model reads instead
    count = len(dense)
    problem = ReconstructionProblem(
        weight,
        inputs.T @ inputs / count,
        KSparse(8),
        cross=dense.T @ inputs / count,
        dense_gram=dense.T @ dense / count,
    )
    mask = solve(problem.mask_problem, effort="fast").mask
    expected = best(inputs, dense @ weight.T, mask)
    found = refit(problem, mask)
    assert torch.allclose(found.weight, expected, atol=1e-8)
    lost = (dense @ weight.T - inputs @ expected.T).square().sum() / count
    assert found.objective == pytest.approx(float(lost), rel=1e-9)
    energy = (dense @ weight.T).square().sum() / count
    assert found.relative_error == pytest.approx(float(lost / energy), rel=1e-9)


def test_damping_is_part_of_the_objective():
    weight, inputs = data(seed=3)
    gram = inputs.T @ inputs / len(inputs)
    problem = ReconstructionProblem(weight, gram, KSparse(8), damping=0.5)
    ridge = 0.5 * float(gram.diagonal().mean())
    moved = 0.1 * Draw(4).normal(6, 16).double()
    expected = ((moved @ gram) * moved).sum() + ridge * moved.square().sum()
    assert problem.objective(weight + moved) == pytest.approx(float(expected), rel=1e-10)
    mask = solve(problem.mask_problem, "wanda").mask
    stacked = torch.cat([inputs / len(inputs) ** 0.5, ridge**0.5 * torch.eye(16).double()])
    assert torch.allclose(refit(problem, mask).weight, best(stacked, stacked @ weight.T, mask), atol=1e-8)


@pytest.mark.parametrize("kind", GRAMS)
@given(seed=st.integers(0, 2**31))
def test_never_worse_and_never_nan_on_hard_grams(kind, seed):
    draw = Draw(seed)
    weight, gram = draw.normal(3, 8), make_gram(kind, 8, draw)
    try:
        problem = ReconstructionProblem(weight, gram, KSparse(4))
    except RelaxPruneError as error:
        assert "damping" in str(error)
        problem = ReconstructionProblem(weight, gram, KSparse(4), damping=1e-3)
    mask = solve(problem.mask_problem, "wanda").mask
    found = refit(problem, mask)
    assert bool(torch.isfinite(found.weight).all())
    noise = 1e-6 * problem.reference
    assert -noise <= found.objective <= found.kept_objective + noise
    assert bool((found.damping <= 1e-4).all())


def test_a_singular_support_is_damped_and_says_so():
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    inputs = torch.cat([inputs, inputs], dim=1)  # every column twice
    gram, target = inputs.T @ inputs, torch.ones(2, 6).double()
    with pytest.raises(RelaxPruneError, match="give damping, such as 1e-6"):
        ReconstructionProblem(target, gram, KSparse(6))
    found = LeastSquares(target, Gram(gram), 2**20).solve(torch.ones(2, 6, dtype=torch.bool))
    assert bool((found.damping > 0).all()) and float(found.residual.max()) < 1.001e-5
    damped = ReconstructionProblem(target, gram, KSparse(6), damping=1e-9)
    assert refit(damped, torch.ones(2, 6, dtype=torch.bool)).objective < 1e-8 * damped.reference


def test_rows_in_blocks_give_the_same():
    weight, inputs = data(rows=20)
    problem = ReconstructionProblem(weight, inputs.T @ inputs, KSparse(8))
    mask = solve(problem.mask_problem, "wanda").mask
    whole, split = (refit(problem, mask, memory_budget_bytes=budget) for budget in (2**30, 1))
    assert torch.allclose(whole.weight, split.weight, atol=1e-12)


def test_inputs_that_never_fire_leave_their_weights():
    gram = torch.diag(torch.tensor([1.0, 0.0, 2.0, 3.0]))
    weight = torch.tensor([[1.0, 7.0, 2.0, 3.0]])
    found = refit(ReconstructionProblem(weight, gram, KSparse(3)), torch.tensor([[True, True, True, False]]))
    assert torch.allclose(found.weight, torch.tensor([[1.0, 7.0, 2.0, 0.0]]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"damping": -1}, "damping must be a number of at least 0, got -1"),
        ({"cross": torch.eye(4)}, "dense_gram is needed with cross"),
        ({"dense_gram": torch.eye(4)}, "cross is needed with dense_gram"),
        ({"cross": torch.eye(3), "dense_gram": torch.eye(4)}, r"cross must be .* \(4, 4\), got .* \(3, 3\)"),
        ({"cross": torch.full((4, 4), torch.nan), "dense_gram": torch.eye(4)}, "cross holds NaN or Inf"),
    ],
)
def test_bad_input_is_refused(arguments, words):
    with pytest.raises(RelaxPruneError, match=words):
        ReconstructionProblem(torch.ones(2, 4), torch.eye(4), KSparse(2), **arguments)


def test_an_indefinite_gram_is_refused_unless_damped():
    gram = torch.eye(3) - 1e-4 * torch.diag(torch.tensor([0.0, 0.0, 1.0]))
    gram[0, 1] = gram[1, 0] = 1.0002
    with pytest.raises(RelaxPruneError, match=r"gram must be proven positive semidefinite.*give damping"):
        ReconstructionProblem(torch.ones(1, 3), gram, KSparse(2))
    assert ReconstructionProblem(torch.ones(1, 3), gram, KSparse(2), damping=0.01).damping == 0.01


def test_a_mask_that_does_not_fit_is_refused():
    problem = ReconstructionProblem(torch.ones(2, 4), torch.eye(4), KSparse(2))
    for mask in (torch.ones(2, 4), torch.ones(1, 4, dtype=torch.bool), None):
        with pytest.raises(RelaxPruneError, match=r"mask must be a bool mask of shape \(2, 4\)"):
            refit(problem, mask)
    with pytest.raises(RelaxPruneError, match="problem must be a ReconstructionProblem or MaskProblem, got Quad"):
        refit(QuadraticProblem(torch.eye(4), torch.ones(2, 4), KSparse(2)), torch.ones(2, 4, dtype=torch.bool))
