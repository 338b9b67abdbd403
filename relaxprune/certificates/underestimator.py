"""Convex functions below the objective that are easy to minimise: the source of every bound here.

On masks m_j² = m_j, so anything that vanishes there may be taken off the objective, and anything that is at least 0
there as well. Row by row,

    L(m) = f(m) + Σ_j d_j m_j (1 − m_j) + ρ Σ_groups (Σ m)(Σ m − keep) − Σ_k λ_k ((s_k·x)² − 1)

is at most f on every feasible mask: the second term vanishes, the third vanishes for exact counts and is at most 0 for
"at most" counts (ρ ≥ 0), and with x = (1, 1 − 2m) = ±1 an odd sum s_k·x is odd, so that its square is at least 1
(λ_k ≥ 0; three entries give the triangle inequalities, one of them the constant gives the products of two bounds). If L
is convex it lies above its tangent at ANY point p, and the exact oracle minimises the tangent over the polytope.

Three choices of L are used: d = −τ q with the τ that convexity needs, nearly always 0 (``fw``), q = diag(Q) without a
row's own Fisher term, which is convex itself; d = s ∘ q with a tightening s that suits all rows at once (``diagonal``);
everything, for one row (``sdp``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relaxprune.problems import Problem
from relaxprune.problems.precision import UNIT_ROUNDOFF

from .sdp.counts import row_counts
from .verify.claim import METHODS, TangentProof

MATRICES = 14  # float64 tensors of the problem's shape held at once
_CONVEXITY_MARGIN = 1e-9


@dataclass(frozen=True)
class Bound:
    """A bound per coupled block, and the allowances in it.

    Attributes:
        block_lower_bound: (blocks,) float64.
        value: (blocks,) float64, f at the point as given; for other methods than fw L there.
        row_rounding: (blocks,) the part of the bound given away to rounding errors.
        convexity_slack: the part given away to a Gram that is not proven PSD, summed over blocks.
        scale: (blocks,) float64, the place of the tangent on the ray through the point.
    """

    block_lower_bound: Tensor
    value: Tensor
    row_rounding: Tensor
    convexity_slack: float
    scale: Tensor


def plain_proof(problem: Problem, point: Tensor, tightening: Tensor | None = None) -> TangentProof:
    """Return the proof of method fw, or with a tightening of method diagonal, at ``point``."""
    rows, cols = problem.shape
    device = problem.device
    method = METHODS.index("fw" if tightening is None else "diagonal")
    none = torch.zeros(0, dtype=torch.int64, device=device)
    empty = torch.zeros(0, dtype=torch.float64, device=device)
    return TangentProof(
        point=point,
        scale=empty.new_ones(problem.polytope.block_count(problem.shape)),
        row_method=torch.full((rows,), method, dtype=torch.int8, device=device),
        tightening=tightening,
        dense_rows=none,
        dense_diagonal=empty.view(0, 1).expand(0, cols),
        dense_weight=empty,
        cut_row=none,
        cut_index=none.view(0, 1).expand(0, 3),
        cut_sign=torch.zeros(0, 3, dtype=torch.int8, device=device),
        cut_multiplier=empty,
    )


def tangent_bound(problem: Problem, proof: TangentProof, memory_bytes: int, flatten: bool = True) -> Bound:
    """Bound every coupled block of ``problem`` from below by the tangents of ``proof``, which must make L convex.

    Everything is float64, and the worst case of rounding is subtracted.

    Args:
        problem: the problem; its own polytope gives the oracle.
        proof: the choice of L and the point, a relaxed mask that need not be feasible.
        memory_bytes: bound on temporaries, where rows are independent.
        flatten: choose ``scale`` anew for blocks whose rows all have method fw; else the proof's is used.
    """
    height = problem.polytope.rows_per_block(problem.shape)
    pieces = [
        _bound(piece, _part(proof, part, slice(part.start // height, part.stop // height)), flatten)
        for part, piece in problem.split(MATRICES, memory_bytes)
    ]
    return Bound(
        torch.cat([piece.block_lower_bound for piece in pieces]),
        torch.cat([piece.value for piece in pieces]),
        torch.cat([piece.row_rounding for piece in pieces]),
        sum(piece.convexity_slack for piece in pieces),
        torch.cat([piece.scale for piece in pieces]),
    )


def _part(proof: TangentProof, rows: slice, blocks: slice) -> TangentProof:
    """Return the proof of a run of whole coupled blocks."""
    dense = (proof.dense_rows >= rows.start) & (proof.dense_rows < rows.stop)
    cuts = (proof.cut_row >= rows.start) & (proof.cut_row < rows.stop)
    return replace(
        proof,
        point=proof.point[rows],
        scale=proof.scale[blocks],
        row_method=proof.row_method[rows],
        dense_rows=proof.dense_rows[dense] - rows.start,
        dense_diagonal=proof.dense_diagonal[dense],
        dense_weight=proof.dense_weight[dense],
        cut_row=proof.cut_row[cuts] - rows.start,
        cut_index=proof.cut_index[cuts],
        cut_sign=proof.cut_sign[cuts],
        cut_multiplier=proof.cut_multiplier[cuts],
    )


def _bound(problem: Problem, proof: TangentProof, flatten: bool) -> Bound:
    """Bound the coupled blocks of a problem that fits in memory."""
    polytope, shift = problem.polytope, problem.proof.shift
    point = proof.point.to(torch.float64)
    half = problem.half_gradient(point)
    value = polytope.block_sum(problem.row_value(point, half))
    scale = proof.scale
    if flatten:
        # Any point gives a tangent; where L is f the problem knows a better one on the same ray.
        others = polytope.block_sum(proof.row_method.to(torch.float64))
        scale = torch.where(others == 0, problem.flattening(point, half), scale)
    if not bool((scale == 1).all()):
        column = polytope.to_rows(scale, point.shape[0])
        point, half = 1 - column * (1 - point), half * column
    taken = _added_diagonal(problem, proof)
    lowered = problem.row_value(point, half) + (taken * point * (1 - point)).sum(dim=1)
    half = half + taken * (0.5 - point)
    size = (taken.abs() * (1 + point.abs()).square()).sum(dim=1)
    for extra_value, extra_half, extra_size in (_counts(problem, proof, point), _cuts(proof, point)):
        lowered, half, size = lowered + extra_value, half + extra_half, size + extra_size
    if bool(proof.row_method.any()):
        value = polytope.block_sum(lowered)
    bound = polytope.block_sum(lowered - 2 * (half * point).sum(dim=1)) + 2 * polytope.lmo_bound(half)
    slack = polytope.block_sum(problem.rounding(point) + 8 * problem.terms() * UNIT_ROUNDOFF * size)
    bound = bound - slack
    convexity = bound.new_zeros(len(bound))
    if shift:
        # Σ q over pruned entries is at most this, and an objective zᵀQz at least −τ times it. What is kept in any
        # case stays out of both sums, which it would round.
        kept = polytope.fixed()[0]
        shared = problem.shared_diagonal
        diagonal = shared if kept is None else shared.masked_fill(kept, 0.0)
        total = polytope.block_sum(diagonal.sum(dim=1))
        pruned = total - polytope.lmo_bound(diagonal) + 4 * problem.terms() * UNIT_ROUNDOFF * total
        convexity = shift * (1 + _CONVEXITY_MARGIN) * pruned
    if problem.nonnegative:
        bound = torch.maximum(bound, 0 - convexity)
    return Bound(bound, value, slack, float(convexity.sum()), scale)


def _added_diagonal(problem: Problem, proof: TangentProof) -> Tensor:
    """Return d: (rows, cols) float64."""
    tightening = torch.full_like(proof.point, -problem.proof.shift, dtype=torch.float64)
    if proof.tightening is not None:
        tightening[proof.row_method == METHODS.index("diagonal")] = proof.tightening
    taken = tightening.mul_(problem.shared_diagonal)
    taken[proof.dense_rows] = proof.dense_diagonal
    return taken


def _counts(problem: Problem, proof: TangentProof, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value (rows,), half gradient (rows, cols) and size (rows,) of ρ Σ (Σ m)(Σ m − keep)."""
    counts = row_counts(problem)
    if counts is None or not len(proof.dense_rows):
        zero = point.new_zeros(len(point))
        return zero, point.new_zeros(1, 1), zero
    size, keep = counts
    groups = point.view(len(point), -1, size)
    sums = groups.sum(dim=2)
    weight = point.new_zeros(len(point)).index_copy_(0, proof.dense_rows, proof.dense_weight)
    half = weight.view(-1, 1) * (sums - keep / 2)
    magnitude = groups.abs().sum(dim=2)
    total = weight * ((magnitude + keep) * (magnitude + 2 * size)).sum(dim=1)
    return weight * (sums * (sums - keep)).sum(dim=1), half.repeat_interleave(size, dim=1), 2 * total


def _cuts(proof: TangentProof, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value (rows,), half gradient (rows, cols) and size (rows,) of −Σ λ ((s·x)² − 1)."""
    rows = len(point)
    value, size = point.new_zeros(rows), point.new_zeros(rows)
    if not len(proof.cut_row):
        return value, point.new_zeros(1, 1), size
    signs = torch.cat([point.new_ones(rows, 1), 1 - 2 * point], dim=1)  # x
    weight, row = proof.cut_multiplier, proof.cut_row
    sums = (signs[row.unsqueeze(1), proof.cut_index] * proof.cut_sign).sum(dim=1)
    value.index_add_(0, row, -weight * (sums.square() - 1))
    largest = signs.abs().amax(dim=1)[row]
    size.index_add_(0, row, weight * (3 * largest + 4).square())
    gradient = torch.zeros_like(signs)  # half of it, in m: −λ (s·x) (−2 s)
    flat = (row.unsqueeze(1) * signs.shape[1] + proof.cut_index).reshape(-1)
    gradient.view(-1).index_add_(0, flat, (2 * (weight * sums).unsqueeze(1) * proof.cut_sign).reshape(-1))
    return value, gradient[:, 1:], size
