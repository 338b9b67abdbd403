"""What a certificate says, as plain values: all that verification gets, apart from the problem."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from .subject import Subject

METHODS = ("fw", "diagonal", "sdp", "exact")
PERSPECTIVE, EXACT, TRIVIAL = WEIGHT_METHODS = ("perspective", "exact", "trivial")


@dataclass(frozen=True, eq=False)
class TangentProof:
    """The numbers that the bound of masks is rebuilt from.

    Row by row the objective f is replaced by L(m) = f(m) + Σ_j d_j m_j (1 − m_j) + ρ Σ_groups (Σ m)(Σ m − keep)
    − Σ_k λ_k ((s_k·x)² − 1), x = (1, 1 − 2m), which is at most f on every mask; where L is convex its tangent at any
    point p bounds it.

    Attributes:
        point: (rows, cols) p, the point of the tangent.
        scale: (blocks,) float64; the tangent is taken at 1 − scale · (1 − p).
        row_method: (rows,) int8, index into ``METHODS``: which L a row has; rows of method exact need none.
        tightening: (cols,) float64 s for the rows of method diagonal, d = s ∘ q, or None; q is the diagonal of Q
            without a row's own Fisher term.
        dense_rows: (r,) int64, ascending, the rows of method sdp.
        dense_diagonal: (r, cols) float64, their d.
        dense_weight: (r,) float64, their ρ.
        cut_row: (m,) int64, the row of each cut.
        cut_index: (m, 3) int64, its entries of x: 0 is the constant, j + 1 is column j.
        cut_sign: (m, 3) int8, ±1.
        cut_multiplier: (m,) float64, λ.
    """

    point: Tensor
    scale: Tensor
    row_method: Tensor
    tightening: Tensor | None
    dense_rows: Tensor
    dense_diagonal: Tensor
    dense_weight: Tensor
    cut_row: Tensor
    cut_index: Tensor
    cut_sign: Tensor
    cut_multiplier: Tensor


PROOF_TENSORS = tuple(item.name for item in fields(TangentProof))


@dataclass(frozen=True, kw_only=True, eq=False)
class Claim:
    """What every certificate says.

    Attributes:
        method: the method that was asked for.
        objective: of the answer.
        lower_bound: claimed to be at most the objective of every feasible answer.
        block_objective, block_lower_bound: (blocks,) float64, both per coupled block.
        subject: the problem it is for; None unless it was read from a file.
    """

    method: str
    objective: float
    lower_bound: float
    block_objective: Tensor
    block_lower_bound: Tensor
    subject: Subject | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskClaim(Claim):
    """A mask, and a bound for all masks of its set.

    Attributes:
        mask: (rows, cols) bool.
        proof: what the bound is rebuilt from.
        shift: τ of the rows of method fw: d = −τ q.
        rows_covered: number of rows that the method was applied to.
    """

    mask: Tensor
    proof: TangentProof
    shift: float
    rows_covered: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceClaim(Claim):
    """A mask of a hybrid set, and a bound for all of its masks from bounds on rows that are not dense.

    Attributes:
        mask: (rows, cols) bool.
        apart: a claim on the set in which no row is dense; its row bounds, and an exact choice, give the bound.
    """

    mask: Tensor
    apart: MaskClaim


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightClaim(Claim):
    """Weights that are 0 outside a mask, and a bound for all weights on all masks of the set.

    Attributes:
        weight: (rows, cols) floats.
        point: (rows, cols) float64, a in the scaling that gives the Gram a unit diagonal, for method perspective; else
            None.
        tightening: (cols,) float64, d / diag(H) of method perspective; else None.
    """

    weight: Tensor
    point: Tensor | None
    tightening: Tensor | None
