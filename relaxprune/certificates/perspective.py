"""Bounds for masks whose weights may move: the perspective relaxation, from its dual.

With H − D positive semidefinite, D = Diag(d) > 0, r = t − v and any vector a,

    rᵀ H r ≥ 2 cᵀ r − aᵀ c + Σ_j d_j r_j²,   c = (H − D) a,

and what is left separates: where v_j is free the least over r_j is −c_j² / d_j, where v_j = 0 it is
2 c_j t_j + d_j t_j². The latter is larger by (d_j t_j + c_j)² / d_j, so that the oracle of the set finds the mask with
the least sum (Frangioni and Gentile, Mathematical Programming 106, 2006; here with one D for all rows). The best a
belongs to the perspective relaxation φ(m) = min_v (t − v)ᵀ(H − D)(t − v) + Σ d_j (t_j² − 2 t_j v_j + v_j² / m_j); the
bound holds for every a.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relaxprune.problems import Gram, ReconstructionProblem, RelaxPruneError
from relaxprune.problems.precision import UNIT_ROUNDOFF

MATRICES = 12  # (rows, cols) float64 tensors held at once
_STEP = 0.05  # first step towards the response
_RISE, _FALL = 1.2, 0.5  # of a row's step, if its bound rose and if it did not
_SHRINK, _LEAST_SCALE = 0.8, 1e-4  # of the conditional variances
_HELD_BACK = 1e-3  # of d: what keeps H − D definite, so that rounding of c can be allowed for


def separable(gram: Gram) -> Tensor | None:
    """Return d / diag(H), (cols,) float64, with H − Diag(d) proven positive semidefinite and d > 0, or None.

    d is the conditional variances 1 / (H⁻¹)_jj, scaled up together as far as possible.
    """

    def make() -> Tensor:
        matrix = gram.full_correlation()
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info):
            return matrix.new_zeros(gram.cols)
        variance = 1 / torch.cholesky_inverse(factor).diagonal()
        # The largest of a falling sequence of scales that leaves a definite matrix; what is proven is proven after it.
        scale = 1.0
        while scale > _LEAST_SCALE:
            trial = matrix.clone()
            trial.diagonal().sub_(scale * variance)
            if not int(torch.linalg.cholesky_ex(trial)[1]):
                break
            scale *= _SHRINK
        return (1 - _HELD_BACK) * gram.proven_tightening(scale * variance)

    tightening = torch.where(gram.diagonal > 0, gram.remember("separable tightening", make), 1.0 - _HELD_BACK)
    return tightening if bool((tightening > 1e-12).all()) else None


class Perspective:
    """The dual function of one problem, in the scaling of unit diagonal.

    Args:
        problem: the problem; its Gram must leave a diagonal, see ``separable``.
        dtype: float64 for a bound; float32 finds a point in half the time.
    """

    def __init__(self, problem: ReconstructionProblem, dtype: torch.dtype = torch.float64) -> None:
        gram = problem.prepared
        tightening = separable(gram)
        if tightening is None:
            raise RelaxPruneError("gram is singular or nearly so: no diagonal can be separated from it")
        self.problem, self.tightening = problem, tightening.to(dtype)
        self.matrix = gram.full_correlation().to(dtype)
        self.splits = problem.polytope.rows_per_block(problem.shape) < problem.shape[0]
        # An input that never fires leaves the error alone: its entries are 0.
        self.target = (problem.target.to(torch.float64) * gram.diagonal.to(torch.float64).sqrt()).to(dtype)

    def bound(self, point: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the bound of some coupled blocks at a, without the residual, and the response r, (R, cols).

        What c, the sums and the products may have been rounded by is taken off: with δ the rounding of c, the constant
        aᵀ c grows by at most |a|ᵀ δ + δᵀ (H − D)⁻¹ δ, and H − D is at least a thousandth of D.
        """
        tightening, target = self.tightening, self.target[rows]
        polytope = self.problem.mask_problem.rows(rows).polytope if self.splits else self.problem.polytope
        cols = target.shape[1]
        slope = point @ self.matrix - point * tightening
        dearer = (tightening * target + slope).square() / tightening
        mask = polytope.lmo(-dearer) > 0.5
        value = dearer - slope.square() / tightening - point * slope
        noise = 4 * (cols + 8) * UNIT_ROUNDOFF
        off = noise * point.abs().sum(dim=1, keepdim=True)  # |C_jk| ≤ 1
        # The minimum over masks and over r is of the c that was used; that c is (H − D) a only up to ``off``.
        slack = (point.abs() * off + off.square() / (_HELD_BACK * tightening)).sum(dim=1)
        size = (tightening * target.abs() + slope.abs()).square() / tightening + (point * slope).abs()
        slack += noise * size.sum(dim=1)
        bound = polytope.block_sum(value.sum(dim=1) - slack) + polytope.lmo_bound(-dearer)
        return bound, torch.where(mask, -slope / tightening, target)

    def bounds(self, point: Tensor, memory_bytes: int) -> Tensor:
        """Return the bound of each coupled block at a (rows, cols), (blocks,), some rows at a time."""
        pieces = self.problem.mask_problem.split(MATRICES, memory_bytes)
        parts = [self.bound(point[rows], rows)[0] for rows, _ in pieces]
        return (torch.cat(parts) + self.problem.residual_of_blocks()).clamp(min=0.0)


def raised(dual: Perspective, rows: slice, iterations: int) -> Tensor:
    """Raise the bound of some rows by steps towards the response; return the point, (R, cols)."""
    point = torch.zeros_like(dual.target[rows])
    best, response = dual.bound(point, rows)
    step = torch.full_like(best, _STEP)
    spread = dual.problem.polytope.to_rows
    for _ in range(iterations):
        trial = point + spread(step, len(point)).to(point.dtype) * (response - point)
        value, answer = dual.bound(trial, rows)
        better = value > best
        moved = spread(better, len(point))
        point = torch.where(moved, trial, point)
        response = torch.where(moved, answer, response)
        best = torch.where(better, value, best)
        step = torch.where(better, step * _RISE, step * _FALL)
    return point.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
