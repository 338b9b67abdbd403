"""Verify a certificate from the problem alone, in numpy, by code that had no part in making it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from relaxprune.problems import Problem, RelaxPruneError

from ..certificate import Certificate
from ..underestimator import METHODS
from .definite import fractions, is_semidefinite, smallest_eigenvalue
from .listing import least_of_all
from .rebuilding import Array, Quadratics, Terms, floats, row_matrix, tangent_bound
from .wellformed import CertificateError as CertificateError
from .wellformed import check_tensors

OBJECTIVE_TOLERANCE = 1e-9  # of the size of the terms
BOUND_TOLERANCE = 1e-12
_MOST_EXACT = (64, 24)  # rows, columns
_CHUNK = 2**21  # entries of a part
_FW, _DIAGONAL, _SDP, _EXACT = (METHODS.index(name) for name in ("fw", "diagonal", "sdp", "exact"))


@dataclass(frozen=True)
class Verification:
    """What was found of a certificate that holds.

    Attributes:
        method: the certificate's.
        arithmetic: ``"float64"``, or ``"rational"``, in which nothing is rounded.
        objective: f(mask), recomputed.
        lower_bound: the sum of the rebuilt bounds of all coupled blocks, from which nothing is given away to rounding;
            the certificate's own is not above it.
        smallest_eigenvalue: the smallest seen while convexity was shown, each matrix scaled to a unit diagonal; None
            where no row needed convexity.
        rows_checked: number of rows.
        rows_by_method: how many of them rest on which method.
    """

    method: str
    arithmetic: str
    objective: float
    lower_bound: float
    smallest_eigenvalue: float | None
    rows_checked: int
    rows_by_method: dict[str, int]


def verify(problem: Problem, certificate: Certificate, exact: bool = False) -> Verification:
    """Check a certificate against a problem.

    Args:
        problem: the problem, with the polytope that the certificate is for.
        certificate: the certificate.
        exact: compute in rationals, without any tolerance for the bound; up to 64 rows and 24 columns.

    Raises:
        CertificateError: something that the certificate says does not hold.
        RelaxPruneError: ``exact`` and the problem is too large, or a set or problem that is not known.
    """
    rows, cols = problem.shape
    if exact and (rows > _MOST_EXACT[0] or cols > _MOST_EXACT[1]):
        raise RelaxPruneError(
            f"exact verification takes up to {_MOST_EXACT[0]} rows and {_MOST_EXACT[1]} columns, got {rows} x {cols}"
        )
    check_tensors(problem, certificate)
    check = _Check(problem, certificate, exact)
    objective = check.objective()
    check.multipliers()
    eigenvalue = check.convexity()
    bound = check.bounds()
    check.total()
    arithmetic = "rational" if exact else "float64"
    by_method = {name: int((check.method == number).sum()) for number, name in enumerate(METHODS)}
    return Verification(certificate.method, arithmetic, objective, bound, eigenvalue, rows, by_method)


class _Check:
    """One verification: the problem and the certificate as arrays, read when needed."""

    def __init__(self, problem: Problem, certificate: Certificate, exact: bool) -> None:
        self.problem = problem
        self.certificate = certificate
        self.exact = exact
        self.rough = Quadratics.of(problem)  # float64
        self.quadratics = self.rough.rational() if exact else self.rough
        self.shift = float(certificate.checks["shift"])
        self.method: Array = certificate.proof.row_method.cpu().numpy()
        self.stored = floats(certificate.block_lower_bound)
        self.height = self.rough.masks.rows_per_block()
        self.smallest: list[float] = []

    @cached_property
    def terms(self) -> Terms:
        """What the proof adds to the objective."""
        return Terms.of(self.certificate.proof, self.shift, self.quadratics, self.exact)

    def parts(self) -> list[slice]:
        """Return runs of rows, of whole coupled blocks."""
        rows, cols = self.problem.shape
        step = self.height * max(1, _CHUNK // (self.height * cols))
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]

    def name(self, block: int) -> str:
        """Name a coupled block in an error."""
        if self.height == 1:
            return f"row {block}"
        return f"rows {block * self.height} to {(block + 1) * self.height - 1}"

    def objective(self) -> float:
        """Check the mask and its objectives; return the sum."""
        certificate, masks = self.certificate, self.rough.masks
        mask: Array = certificate.mask.cpu().numpy().astype(bool)
        if not masks.feasible(mask):
            raise CertificateError(f"mask is not in {self.problem.polytope!r}: it keeps {int(mask.sum())} entries")
        number = fractions if self.exact else _floats
        found = np.concatenate(
            [
                part.masks.block_sum(part.value(number(mask[rows])))
                for rows, part in ((rows, self.quadratics.part(rows)) for rows in self.parts())
            ]
        )
        size = masks.block_sum(self.rough.magnitude(mask.astype(np.float64)))
        stored = floats(certificate.block_objective)
        for block in range(len(stored)):
            if not abs(found[block] - _number(stored[block], self.exact)) <= OBJECTIVE_TOLERANCE * size[block]:
                raise CertificateError(
                    f"the objective of {self.name(block)} is {float(found[block])!r}, "
                    f"but the certificate says {float(stored[block])!r}"
                )
        total = float(found.sum())
        if not abs(total - certificate.objective) <= OBJECTIVE_TOLERANCE * float(size.sum()):
            raise CertificateError(f"the objective is {total!r}, but the certificate says {certificate.objective!r}")
        return total

    def multipliers(self) -> None:
        """Check that everything taken off the objective is at least 0 on masks, and that every row's L is told."""
        proof, cols = self.certificate.proof, self.problem.shape[1]
        dense = proof.dense_rows.cpu().numpy()
        if not np.array_equal(dense, np.flatnonzero(self.method == _SDP)):
            raise CertificateError("dense_rows are not the rows whose method is sdp")
        if not np.isin(self.method, (_FW, _DIAGONAL, _SDP, _EXACT)).all():
            raise CertificateError(f"row {int(np.argmax(~np.isin(self.method, range(4))))} has an unknown method")
        if (self.method == _DIAGONAL).any() and proof.tightening is None:
            raise CertificateError("there are rows of method diagonal, but no tightening")
        weight = floats(proof.dense_weight)
        allowed = weight >= 0 if self.rough.masks.row_count is not None else weight == 0
        if not allowed.all():
            place = int(np.argmin(allowed))
            raise CertificateError(f"row {int(dense[place])} has the weight {weight[place]!r} of a count")
        owner, index, sign = (tensor.cpu().numpy() for tensor in (proof.cut_row, proof.cut_index, proof.cut_sign))
        multiplier = floats(proof.cut_multiplier)
        ordered = np.sort(index, axis=1)
        different = (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
        within = ((index >= 0) & (index <= cols)).all(axis=1)
        for what, good in (
            ("belongs to no row of method sdp", np.isin(owner, dense)),
            ("has a multiplier below 0", multiplier >= 0),
            ("has signs other than 1 and -1", (np.abs(sign.astype(np.int64)) == 1).all(axis=1)),
            ("does not name three different entries", different & within),
        ):
            if not good.all():
                cut = int(np.argmin(good))
                raise CertificateError(
                    f"cut {cut} of row {int(owner[cut])} {what}: entries {index[cut].tolist()}, "
                    f"signs {sign[cut].tolist()}, multiplier {float(multiplier[cut])!r}"
                )

    def convexity(self) -> float | None:
        """Show that every row's L is convex; return the smallest eigenvalue seen."""
        proof = self.certificate.proof
        cols = self.problem.shape[1]
        if (self.method == _FW).any():
            self.common("rows of method fw", np.full(cols, -self.shift))
        if (self.method == _DIAGONAL).any() and proof.tightening is not None:
            self.common("rows of method diagonal", floats(proof.tightening))
        masks, terms = self.rough.masks, self.terms
        for row in proof.dense_rows.tolist():
            fixed = masks.kept[row] | masks.pruned[row]
            if not (terms.point[row][fixed] == masks.kept[row][fixed]).all():
                raise CertificateError(f"the tangent of row {row} is taken where entries lack their fixed values")
            single = slice(row, row + 1)
            own = Quadratics(
                self.quadratics.factor[single],
                self.quadratics.gram,
                self.quadratics.offset,
                self.quadratics.linear,
                self.quadratics.root,
                masks.part(single),
            )
            self.definite(f"row {row}", *row_matrix(own, terms.part(single), 0))
        return min(self.smallest) if self.smallest else None

    def common(self, what: str, tightening: Array) -> None:
        """Show that G − Diag(tightening · diag G) is positive semidefinite, which suits every row."""
        gram = self.quadratics.gram
        live = self.rough.root > 0
        matrix = gram[live][:, live]
        places = np.arange(len(matrix))
        size = np.abs(matrix)
        taken = (fractions(tightening) if self.exact else tightening)[live] * matrix[places, places]
        # The matrix is scaled by the Gram's own diagonal: shares beyond it only add to the norm.
        matrix[places, places] -= taken
        self.definite(what, matrix, size)

    def definite(self, what: str, matrix: Array, size: Array) -> None:
        """Raise unless a matrix is positive semidefinite: (n, n), with the size of its terms."""
        smallest, rounding = smallest_eigenvalue(matrix.astype(np.float64), size.astype(np.float64))
        self.smallest.append(smallest)
        if self.exact:
            if not is_semidefinite(matrix):
                raise CertificateError(f"L is not convex for {what}: exactly, with an eigenvalue near {smallest:.6g}")
        elif not smallest >= -rounding:
            raise CertificateError(
                f"L is not convex for {what}: the smallest eigenvalue is {smallest:.6g}, and rounding explains only "
                f"{rounding:.2g}"
            )

    def bounds(self) -> float:
        """Rebuild every block's bound and compare; return the sum."""
        total: Any = Fraction(0) if self.exact else 0.0
        for rows in self.parts():
            blocks = slice(rows.start // self.height, rows.stop // self.height)
            quadratics, stored = self.quadratics.part(rows), self.stored[blocks]
            found, size = tangent_bound(quadratics, self.terms.part(rows))
            listed = (self.method[rows] == _EXACT).reshape(len(stored), -1)
            tolerance = np.zeros(len(stored)) if self.exact else BOUND_TOLERANCE * size
            for block in np.flatnonzero(listed.any(axis=1)):
                if not listed[block].all():
                    raise CertificateError(f"{self.name(blocks.start + int(block))} are not all of method exact")
                found[block] = self.listed(blocks.start + int(block))
            low = self.below(found, stored, tolerance)
            if low.any() and self.rough.offset:
                found = np.where(low, np.maximum(found, self.energy_bound(quadratics)), found)
                low = self.below(found, stored, tolerance)
            if low.any():
                worst = int(np.argmax(low))
                raise CertificateError(
                    f"the bound of {self.name(blocks.start + worst)} is {float(found[worst])!r} when rebuilt, "
                    f"but the certificate says {float(stored[worst])!r}"
                )
            total = total + found.sum()
        return float(total)

    def below(self, found: Array, stored: Array, tolerance: Array) -> Array:
        """Tell which rebuilt bounds do not reach the stored ones: (blocks,) bool."""
        wanted = fractions(stored) if self.exact else stored - tolerance
        return ~(found >= wanted).astype(bool)

    def energy_bound(self, quadratics: Quadratics) -> Array:
        """Return what zᵀQz ≥ −shift Σ q z² proves of a layer: (blocks,)."""
        self.common("the bound by 0", np.full(self.problem.shape[1], -self.shift))
        masks = quadratics.masks
        diagonal = np.where(masks.kept, 0 * quadratics.diagonal(), quadratics.diagonal())
        pruned = masks.block_sum(diagonal) - masks.least(diagonal)
        bound: Array = -_number(self.shift, self.exact) * pruned
        return bound

    def listed(self, block: int) -> Any:
        """Return the least objective over all masks of one coupled block."""
        rows = slice(block * self.height, (block + 1) * self.height)
        rough, part = self.rough.part(rows), self.quadratics.part(rows)
        return least_of_all(self.problem.polytope, rows, rough, part if self.exact else None, self.stored[block])

    def total(self) -> None:
        """Check that the total is at most the sum of the blocks' bounds."""
        bound = self.certificate.lower_bound
        total = sum((Fraction(value) for value in self.stored.tolist()), Fraction(0))
        if not math.isfinite(bound) or Fraction(bound) > total:
            raise CertificateError(
                f"lower_bound is {bound!r}, but the bounds of the coupled blocks sum to {float(total)!r}"
            )


def _floats(mask: Array) -> Array:
    """Return a mask as float64."""
    return mask.astype(np.float64)


def _number(value: float, exact: bool) -> Any:
    """Return a float, as a fraction where ``exact``."""
    return Fraction(float(value)) if exact else float(value)
