"""Verification of what is claimed of weights: they lie on a mask, their error, and the bounds for all others.

Method perspective: with H − D semidefinite, D = Diag(d) > 0, r = t − v and any a, c = (H − D) a,

    rᵀ H r + 2 u·r ≥ −aᵀ c + Σ_j d_j r_j² + 2 (c_j + u_j) r_j,

which separates: with s = c + u, where v_j is free the least over r_j is −s_j² / d_j, where v_j = 0 it is
d_j t_j² + 2 s_j t_j. The oracle of the set finds the mask with the least sum. Method exact tries every mask.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from relaxprune.problems import ReconstructionProblem

from .arrays import LEAST, UNIT, Array, below, floats, fractions, number, sum_error
from .claim import EXACT, PERSPECTIVE, WeightClaim
from .definite import check_semidefinite
from .distances import Distances
from .supports import LeastErrors
from .totals import BlockCheck, check_objectives, check_total
from .verified import CertificateError, Verification
from .wellformed import check_weight_claim

_HELD_BACK = 1e-3  # H − (1 + this) D must be semidefinite in float64, so that the rounding of c can be allowed for
_NEARLY = 2.0**-20  # of a bound: where rationals are asked, though float64 does not reach it
_ROUNDED = 1e-9  # of an objective: what it may be below a bound by, where both are rounded


def verify_weights(problem: ReconstructionProblem, claim: WeightClaim, exact: bool) -> Verification:
    """Check a claim on weights; see ``verify``."""
    check_weight_claim(problem, claim)
    check = _Check(problem, claim, exact)
    check.support()
    objective = check.objective()
    check.nonnegative()
    bound = check_total(claim, check.bounds())
    least = np.maximum(floats(claim.block_objective), 0.0) * (1 + _ROUNDED)
    if (floats(claim.block_lower_bound) > least).any() or claim.lower_bound > float(least.sum()):
        raise CertificateError(f"lower_bound is {claim.lower_bound!r}, above what the certificate's own weights have")
    return Verification(
        method=claim.method,
        arithmetic="rational" if exact else "float64",
        objective=objective,
        claimed_bound=claim.lower_bound,
        lower_bound=bound,
        smallest_eigenvalue=check.smallest,
        rows_checked=problem.shape[0],
        rows_by_method={claim.method: problem.shape[0]},
    )


class _Check(BlockCheck):
    """One verification: the problem and the claim as arrays."""

    def __init__(self, problem: ReconstructionProblem, claim: WeightClaim, exact: bool) -> None:
        self.problem, self.claim = problem, claim
        self.distances = Distances.of(problem, exact)
        super().__init__(claim, self.distances.masks, problem.shape[1], exact)
        self.smallest: float | None = None

    def support(self) -> None:
        """Check that one mask of the set covers every weight that is not 0."""
        used = floats(self.claim.weight) != 0
        left = self.masks.block_sum(used.astype(np.float64)) + self.masks.least(-used.astype(np.float64))
        if (left != 0).any():
            raise CertificateError(
                f"weight must be 0 outside a mask of {self.problem.polytope!r}, got at least {int(left.sum())} entries "
                "more than one keeps"
            )

    def objective(self) -> float:
        """Check the weights' errors; return the sum."""
        weight = floats(self.claim.weight)
        values = self.distances.value(fractions(weight) if self.exact else weight)
        size = self.masks.block_sum(self.distances.size(weight))
        return check_objectives(self.claim, self.masks.block_sum(values), size, self.name)

    @cached_property
    def rational(self) -> _Check:
        """The same verification in rationals."""
        return _Check(self.problem, self.claim, True)

    def rebuilt(self, rows: slice) -> tuple[Array, Array]:
        """Return what is proven of some whole coupled blocks, and up to what rationals might: (blocks,) each.

        An error is never negative: that the moments of ``cross`` are of the same tokens is the problem's word.
        """
        part = self.distances.part(rows)
        found, taken = part.proven_rest()
        if self.claim.method == PERSPECTIVE:
            more, rounded = self.separated(part, self.point[rows])
            found, taken = found + more, taken + rounded
        if self.claim.method == EXACT:
            found = found + self.listed(range(rows.start // self.height, rows.stop // self.height), found)
        if not self.exact:
            found = found - 2 * UNIT * np.abs(found)
        proven = np.maximum(found, 0 * found)
        return proven, proven + 2 * taken + number(_NEARLY, self.exact) * proven

    def nonnegative(self) -> None:
        """Show that H is semidefinite, so that no weights have less than ``rest``."""
        matrix = self.live_gram
        missing = check_semidefinite("the Gram is not semidefinite", matrix, np.abs(matrix)).missing
        if missing.any():
            raise CertificateError("the Gram is not proven semidefinite: give damping, or verify in rationals")

    @cached_property
    def live(self) -> Array:
        """The columns with a diagonal above 0, (cols,) bool; the others take no part in any error."""
        return self.distances.root > 0

    @property
    def live_gram(self) -> Array:
        """H over the live columns, a copy."""
        return self.distances.gram[self.live][:, self.live]

    @cached_property
    def diagonal(self) -> Array:
        """d, (cols,), once H − D is shown to be semidefinite; 0 for columns that are not live.

        Raises:
            CertificateError: it is not, or d is not above 0.
        """
        assert self.claim.tightening is not None
        tightening = floats(self.claim.tightening)
        if not (tightening[self.live] > 0).all():
            raise CertificateError(f"tightening must be above 0, got {float(tightening[self.live].min()):.6g}")
        gram = self.distances.gram
        diagonal = (fractions(tightening) if self.exact else tightening) * gram.diagonal()
        matrix, taken = self.live_gram, diagonal[self.live]
        size = np.abs(matrix)
        places = np.arange(len(matrix))
        matrix[places, places] -= taken if self.exact else (1 + _HELD_BACK) * taken
        found = check_semidefinite("the Gram less the tightening is not semidefinite", matrix, size)
        if not self.exact and (found.missing > _HELD_BACK / 2 * taken).any():
            raise CertificateError("the Gram less the tightening is not proven semidefinite by enough for float64")
        self.smallest = found.smallest
        return np.where(self.live, diagonal, 0 * diagonal)

    @cached_property
    def point(self) -> Array:
        """a, (rows, cols), in the scaling of the problem."""
        assert self.claim.point is not None
        root = np.where(self.live, self.distances.root, 1.0)
        scaled = np.where(self.live, floats(self.claim.point) / root, 0.0)
        return fractions(scaled) if self.exact else scaled

    def separated(self, part: Distances, point: Array) -> tuple[Array, Array]:
        """Return what the perspective relaxation proves beyond ``rest`` at a, and what was taken off for rounding.

        Both are per coupled block, (blocks,), and at least 0.
        """
        masks, live, diagonal = part.masks, self.live, self.diagonal
        pulled = point @ part.gram - point * diagonal  # c
        slope = pulled + part.slope
        divisor = np.where(live, diagonal, 1)
        kept = np.where(live, -slope * (slope / divisor), 0 * slope)  # no square alone, which float64 may not hold
        pruned = np.where(live, (diagonal * part.target + 2 * slope) * part.target, 0 * slope)
        lines = pruned.sum(axis=1) - (point * pulled).sum(axis=1)
        bound = masks.block_sum(lines) + masks.least(kept - pruned)
        taken = 0 * bound
        if not self.exact:
            taken = self._rounded(part, point, pulled, slope, lines) + 4 * UNIT * np.abs(bound)
        return np.maximum(bound - taken, 0 * bound), taken

    def _rounded(self, part: Distances, point: Array, pulled: Array, slope: Array, lines: Array) -> Array:
        """Bound what float64 may have rounded of ``separated``: (blocks,).

        The least over masks and over r is that of the s that was used, which belongs to another a: with δ the rounding
        of s, the constant −aᵀc falls by at most 2 |a|ᵀδ + δᵀ(H − D)⁻¹δ, and H − D is at least half of what is held
        back.
        """
        masks, live, diagonal = part.masks, self.live, self.diagonal
        divisor = np.where(live, diagonal, 1.0)
        cols, size = len(live), np.abs(point) * part.root
        off = (cols + 6) * UNIT * (part.root * size.sum(axis=1, keepdims=True) + np.abs(point) * diagonal)
        off = np.where(live, off + part.slope_error + 2 * UNIT * np.abs(slope) + 2 * cols * LEAST, 0.0)
        rounded = (2 * np.abs(point) * off + off * (off / (_HELD_BACK / 2 * divisor))).sum(axis=1) + 64 * cols * LEAST
        reach = diagonal * np.abs(part.target) + np.abs(slope)
        energy = reach * (reach / divisor) * live
        rounded += (2 * sum_error(cols) + 16 * UNIT) * (energy + np.abs(point * pulled)).sum(axis=1)
        rounded += masks.least_error() * energy.sum(axis=1) + sum_error(masks.rows_per_block()) * np.abs(lines)
        return masks.block_sum(rounded) * (1 + 1e-6)

    @cached_property
    def errors(self) -> LeastErrors:
        """The least errors on every support."""
        return LeastErrors(self.problem, self.distances, self.live)

    def listed(self, blocks: range, rest: Array) -> Array:
        """Return what trying every mask of some blocks proves beyond ``rest``, at least 0: (blocks,)."""
        wanted = [float(self.stored[block] - float(own)) for block, own in zip(blocks, rest, strict=True)]
        found = [self.errors.least(block, goal) for block, goal in zip(blocks, wanted, strict=True)]
        values = np.array(found if self.exact else [below(value) for value in found])
        proven: Array = np.maximum(values, 0 * values)
        return proven
