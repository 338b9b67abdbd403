"""The Frank-Wolfe bound: a tangent of the convex relaxation, minimised over the polytope by its exact oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.problems import MaskProblem, Problem
from relaxprune.problems.gram import PsdProof

_UNIT_ROUNDOFF = 2.0**-53
_MATRICES = 12  # float64 tensors of the problem's shape held at once


@dataclass(frozen=True)
class FwBound:
    """A bound per coupled block and what was allowed for.

    Attributes:
        row_lower_bound: (blocks,) float64.
        value: (blocks,) float64, f at the relaxed mask that gave the tangent.
        rounding_slack: the part of the bound given away to rounding errors, summed over blocks.
        convexity_slack: the part given away to a Gram that is not proven PSD, summed over blocks.
    """

    row_lower_bound: Tensor
    value: Tensor
    rounding_slack: float
    convexity_slack: float


def fw_bound(problem: MaskProblem, point: Tensor, memory_bytes: int) -> FwBound:
    """Bound every coupled block of ``problem`` from below by the tangent of the relaxation at ``point``.

    With τ the proven shift (G + τ Diag(G) PSD; 0 for most Grams) and Q_τ = Q + τ Diag(q), every mask has
    f(z) = zᵀ Q_τ z − τ Σ q z, z = 1 − m, whose first term is convex: for ANY y,
    f(z) ≥ 2 yᵀ Q_τ z − yᵀ Q_τ y − τ Σ q z. The right-hand side is linear in z, so the exact oracle minimises it over
    the polytope. Since y is free, it is scaled by the κ that makes the bound largest. Everything is float64 and the
    worst case of rounding is subtracted.

    Args:
        problem: the problem; its own polytope gives the oracle.
        point: (rows, cols), a relaxed mask; need not be feasible.
        memory_bytes: bound on temporaries, where rows are independent.
    """
    pieces = [_bound(piece, point[part]) for part, piece in problem.split(_MATRICES, memory_bytes)]
    return FwBound(
        torch.cat([piece.row_lower_bound for piece in pieces]),
        torch.cat([piece.value for piece in pieces]),
        sum(piece.rounding_slack for piece in pieces),
        sum(piece.convexity_slack for piece in pieces),
    )


def _bound(problem: MaskProblem, point: Tensor) -> FwBound:
    """Bound the coupled blocks of a problem that fits in memory."""
    polytope, proof = problem.polytope, problem.prepared.proof
    point = point.to(torch.float64)
    pruned = 1 - point  # y
    half = problem.half_gradient(point)  # -Q y
    weight = problem.weight.to(torch.float64)
    diagonal = weight.square() * problem.prepared.diagonal.to(torch.float64)  # q
    value = polytope.block_sum(-half * pruned)  # yᵀ Q y
    half_tau = half - proof.shift * diagonal * pruned  # -Q_τ y
    curved = polytope.block_sum(-half_tau * pruned)  # yᵀ Q_τ y
    scale = _best_scale(problem, half_tau, curved)
    kappa = polytope.to_rows(scale, half.shape[0])
    # 2 κ (Q_τ y)·z − τ q·z with z = 1 − m, minimised over masks m: the oracle's costs are the opposite in m.
    costs = 2 * kappa * half_tau + proof.shift * diagonal
    vertex = polytope.lmo(costs)
    bound = -polytope.block_sum(costs * (1 - vertex)) - scale.square() * curved
    slack = _rounding(problem, pruned.abs() * kappa)
    bound = bound - slack
    if proof.psd:
        bound = bound.clamp_min(0)
    return FwBound(bound, value, float(slack.sum()), _convexity_slack(problem, proof, diagonal))


def _best_scale(problem: MaskProblem, half_tau: Tensor, curved: Tensor) -> Tensor:
    """Return κ per coupled block: with b = min (Q_τ y)·z, the bound 2 κ b − κ² yᵀ Q_τ y is largest at b / yᵀ Q_τ y."""
    polytope = problem.polytope
    vertex = polytope.lmo(half_tau)
    least = polytope.block_sum(-half_tau * (1 - vertex))
    return torch.where(curved > 0, (least / curved).clamp(0, 2), 1.0).nan_to_num(nan=1.0, posinf=1.0)


def _rounding(problem: MaskProblem, pruned: Tensor) -> Tensor:
    """Bound the rounding error of the sums, per coupled block, by |G_ij| ≤ (1 + τ) sqrt(G_ii G_jj)."""
    root = problem.prepared.diagonal.to(torch.float64).clamp_min(0).sqrt()
    magnitude = problem.weight.to(torch.float64).abs() * root  # (rows, cols)
    inner = (magnitude * pruned).sum(dim=1)
    outer = magnitude.sum(dim=1)
    rows, cols = problem.shape
    terms = cols + (rows if problem.polytope.rows_per_block(problem.shape) > 1 else 0)
    return problem.polytope.block_sum(8 * terms * _UNIT_ROUNDOFF * inner * (inner + outer))


def _convexity_slack(problem: Problem, proof: PsdProof, diagonal: Tensor) -> float:
    """Return the most that the shift can cost: τ Σ q over the pruned entries of the worst mask."""
    if proof.shift == 0:
        return 0.0
    worst = problem.polytope.lmo(diagonal)
    return proof.shift * float((diagonal * (1 - worst)).sum())
