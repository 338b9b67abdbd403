"""The Frank-Wolfe bound: a tangent of the convex relaxation, minimised over the polytope by its exact oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.problems import Problem
from relaxprune.problems.precision import UNIT_ROUNDOFF

_LAST_DIGITS = 1e-9
_MATRICES = 12  # float64 tensors of the problem's shape held at once


@dataclass(frozen=True)
class FwBound:
    """A bound per coupled block and what was allowed for.

    Attributes:
        row_lower_bound: (blocks,) float64.
        value: (blocks,) float64, f at the relaxed mask that gave the tangent.
        row_rounding: (blocks,) the part of the bound given away to rounding errors.
        convexity_slack: the part given away to a Gram that is not proven PSD, summed over blocks.
    """

    row_lower_bound: Tensor
    value: Tensor
    row_rounding: Tensor
    convexity_slack: float


def fw_bound(problem: Problem, point: Tensor, memory_bytes: int) -> FwBound:
    """Bound every coupled block of ``problem`` from below by a tangent of the relaxation at ``point``.

    With τ the proven shift (Q + τ Diag(q) is PSD for every row; 0 for most problems) and m(1 − m) = 0 on masks,
    f(m) = f_τ(m) = f(m) − τ Σ q m (1 − m), which is convex, so it lies above its tangent at ANY point. The tangent is
    linear, and the exact oracle minimises it over the polytope. Everything is float64, and the worst case of rounding
    is subtracted.

    Args:
        problem: the problem; its own polytope gives the oracle.
        point: (rows, cols), a relaxed mask; need not be feasible.
        memory_bytes: bound on temporaries, where rows are independent.
    """
    pieces = [_bound(piece, point[part]) for part, piece in problem.split(_MATRICES, memory_bytes)]
    return FwBound(
        torch.cat([piece.row_lower_bound for piece in pieces]),
        torch.cat([piece.value for piece in pieces]),
        torch.cat([piece.row_rounding for piece in pieces]),
        sum(piece.convexity_slack for piece in pieces),
    )


def _bound(problem: Problem, point: Tensor) -> FwBound:
    """Bound the coupled blocks of a problem that fits in memory."""
    polytope, proof = problem.polytope, problem.proof
    point = point.to(torch.float64)
    half = problem.half_gradient(point)
    value = polytope.block_sum(problem.row_value(point, half))
    # Any point gives a tangent; the problem knows a better one of the same cost.
    point, half = problem.flatter(point, half)
    diagonal = problem.diagonal  # q
    lowered = problem.row_value(point, half) - proof.shift * (diagonal * point * (1 - point)).sum(dim=1)
    half = half + proof.shift * diagonal * (point - 0.5)
    bound = polytope.block_sum(lowered - 2 * (half * point).sum(dim=1)) + 2 * polytope.lmo_bound(half)
    shifted = proof.shift * (diagonal * (1 + point.abs()).square()).sum(dim=1)
    slack = polytope.block_sum(problem.rounding(point) + 8 * problem.terms() * UNIT_ROUNDOFF * shifted)
    bound = bound - slack
    # Σ q over pruned entries is at most this, and an objective zᵀQz at least −τ times it; 0 where Q is proven PSD.
    convexity = (
        proof.shift * (1 + _LAST_DIGITS) * (polytope.block_sum(diagonal.sum(dim=1)) - polytope.lmo_bound(diagonal))
    )
    if problem.nonnegative:
        bound = torch.maximum(bound, 0 - convexity)
    return FwBound(bound, value, slack, float(convexity.sum()))
