"""The best mask with the best weights on it, by trying every mask of a tiny coupled block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relaxprune.problems import ReconstructionProblem, RelaxPruneError
from relaxprune.problems.precision import UNIT_ROUNDOFF
from relaxprune.solvers.weights.engine.least_squares import LeastSquares

from .limits import check_enumerable
from .perspective import separable

_MATRICES = 8  # (masks, cols) float64 tensors held at once, and as many systems


def exact_bounds(problem: ReconstructionProblem, memory_bytes: int) -> Tensor:
    """Return a proven lower bound on the least error of each coupled block, (blocks,) float64.

    Weights v on a support S leave rᵀ H_SS⁻¹ r above the least error there, r the residual of the normal equations; H
    − Diag(d) ⪰ 0 bounds it by ‖r‖² / min d in the scaling of unit diagonal. That and the rounding of the sums are taken
    off, which puts the bound below the optimum by about 1e-9 of it.

    Raises:
        RelaxPruneError: a coupled block has more than 2^20 masks, or the Gram is singular or nearly so.
    """
    check_enumerable(problem.mask_problem)
    tightening = separable(problem.prepared)
    if tightening is None:
        raise RelaxPruneError(
            "method 'exact' needs a Gram that is proven positive definite; give damping, such as 1e-6"
        )
    best = [_least(problem, rows, masks, float(tightening.min()), memory_bytes) for rows, masks in _blocks(problem)]
    return (torch.stack(best) + problem.residual_of_blocks()).clamp(min=0.0)


def _blocks(problem: ReconstructionProblem) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of each coupled block with its masks, (masks, rows, cols) bool."""
    rows, cols = problem.shape
    height = problem.polytope.rows_per_block(problem.shape)
    for first in range(0, rows, height):
        part = slice(first, first + height)
        polytope = problem.polytope if height == rows else problem.polytope.rows(part)
        yield part, polytope.vertices((height, cols)).to(problem.device)


def _least(problem: ReconstructionProblem, rows: slice, masks: Tensor, definite: float, memory_bytes: int) -> Tensor:
    """Return the least proven error of one coupled block over its masks, float64."""
    gram = problem.prepared
    root = gram.diagonal.to(torch.float64).sqrt()  # 0 for an input that never fires, which leaves the error alone
    matrix = gram.full_correlation()
    target = problem.target[rows].to(torch.float64)
    height, cols = target.shape
    energy = ((target * root).abs().sum(dim=1)).square().sum()
    rounding = 8 * (cols + 8) * UNIT_ROUNDOFF * energy
    least = target.new_full((), torch.inf)
    for some in masks.split(max(1, memory_bytes // (8 * _MATRICES * height * (cols + cols * cols)))):
        repeated = target.repeat(len(some), 1)
        supports = some.reshape(-1, cols)
        found = LeastSquares(repeated, gram, memory_bytes).solve(supports)
        lost = (repeated - found.weight) * root
        pulled = lost @ matrix
        excess = (pulled * supports).square().sum(dim=1) / definite
        value = ((lost * pulled).sum(dim=1) - excess).view(-1, height).sum(dim=1)
        least = torch.minimum(least, value.min())
    return (least - rounding).clamp(min=0.0)
