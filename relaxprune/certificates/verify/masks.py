"""Verification of what is claimed of masks: the objective, the convexity of every row's L, and the bounds."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from relaxprune.problems import Problem

from .arrays import UNIT, Array, below, floats, fractions, number
from .claim import METHODS, MaskClaim
from .definite import check_semidefinite, least_eigenvalue
from .listing import least_of_all
from .quadratics import Quadratics
from .tangents import Terms, point_error, row_matrix, tangent_bound
from .totals import BlockCheck, check_objectives, check_total, misses
from .verified import CertificateError, Verification
from .wellformed import check_mask_claim

_FW, _DIAGONAL, _SDP, _EXACT = range(len(METHODS))
_PAIR = 1e-6  # of the diagonal: what rounding may leave open of the convexity of coupled rows; it is taken off
_ROUNDED = 1e-9
_FARTHEST = 2.5  # from 0 or 1: points lie in [0, 1], and their scale between 0 and 2 takes them down to -1


def verify_masks(problem: Problem, claim: MaskClaim, exact: bool) -> Verification:
    """Check a claim on masks; see ``verify``."""
    check_mask_claim(problem, claim)
    check = _Check(problem, claim, exact)
    objective = check.objective()
    check.multipliers()
    bound = check_total(claim, check.bounds())
    if claim.lower_bound > claim.objective or bool((claim.block_lower_bound > claim.block_objective).any()):
        raise CertificateError(f"lower_bound is {claim.lower_bound!r}, above what the certificate's own mask has")
    return Verification(
        method=claim.method,
        arithmetic="rational" if exact else "float64",
        objective=objective,
        claimed_bound=claim.lower_bound,
        lower_bound=bound,
        smallest_eigenvalue=min(check.smallest, default=None),
        rows_checked=problem.shape[0],
        rows_by_method={name: int((check.method == place).sum()) for place, name in enumerate(METHODS)},
    )


class _Check(BlockCheck):
    """One verification: the problem and the claim as arrays, read when needed."""

    def __init__(self, problem: Problem, claim: MaskClaim, exact: bool) -> None:
        self.problem = problem
        self.claim = claim
        self.rough = Quadratics.of(problem)  # float64
        super().__init__(claim, self.rough.masks, problem.shape[1], exact)
        self.quadratics = self.rough.rational() if exact else self.rough
        self.method: Array = claim.proof.row_method.cpu().numpy()
        self.shift = float(claim.shift)
        self.smallest: list[float] = []
        self.shared: dict[str, Array] = {}  # what may be missing of convexity, (cols,), by the rows that it is for

    @cached_property
    def terms(self) -> Terms:
        """What the proof adds to the objective."""
        return Terms.of(self.claim.proof, self.shift, self.quadratics, self.exact)

    def objective(self) -> float:
        """Check the mask and its objectives; return the sum."""
        masks = self.masks
        mask: Array = self.claim.mask.cpu().numpy().astype(bool)
        if not masks.feasible(mask):
            raise CertificateError(f"mask is not in {self.problem.polytope!r}: it keeps {int(mask.sum())} entries")
        entries = mask.astype(np.float64)
        values = fractions(entries) if self.exact else entries
        parts = ((rows, self.quadratics.part(rows)) for rows in self.masks.parts())
        found = np.concatenate([part.masks.block_sum(part.value(values[rows])) for rows, part in parts])
        return check_objectives(self.claim, found, masks.block_sum(self.rough.size(entries)), self.name)

    def multipliers(self) -> None:
        """Check that everything taken off the objective is at least 0 on masks, and that every row's L is known."""
        proof, cols = self.claim.proof, self.problem.shape[1]
        if not (self.terms.move <= _FARTHEST).all():
            raise CertificateError(f"a point lies further than {_FARTHEST:g} from a mask's values, 0 and 1")
        dense = proof.dense_rows.cpu().numpy()
        if not np.array_equal(dense, np.flatnonzero(self.method == _SDP)):
            raise CertificateError("dense_rows are not the rows whose method is sdp")
        if self.rough.outputs is not None and np.isin(self.method, (_DIAGONAL, _SDP)).any():
            raise CertificateError(
                "rows are coupled, so methods diagonal and sdp, which look at one at a time, prove nothing"
            )
        if not np.isin(self.method, (_FW, _DIAGONAL, _SDP, _EXACT)).all():
            raise CertificateError(f"row {int(np.argmax(~np.isin(self.method, range(4))))} has an unknown method")
        if (self.method == _DIAGONAL).any() and proof.tightening is None:
            raise CertificateError("there are rows of method diagonal, but no tightening")
        weight = floats(proof.dense_weight)
        allowed = weight >= 0 if self.masks.row_count is not None else weight == 0
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

    def rebuilt(self, rows: slice) -> tuple[Array, Array]:
        """Return what the proof proves of some whole coupled blocks, and up to what rationals might: (blocks,) each.

        Raises:
            CertificateError: an L is not convex.
        """
        first = rows.start // self.height
        quadratics, terms = self.quadratics.part(rows), self.terms.part(rows)
        least, allowance = tangent_bound(quadratics, terms, self.missing(rows))
        found = least - allowance
        reach = found if self.exact else least + allowance + point_error(quadratics, terms)
        listed = (self.method[rows] == _EXACT).reshape(len(found), -1)
        for block in np.flatnonzero(listed.any(axis=1)):
            if not listed[block].all():
                raise CertificateError(f"{self.name(first + int(block))} are not all of method exact")
            found[block] = reach[block] = self.listed(first + int(block))  # which asks rationals itself
        low = misses(found, self.stored[first : first + len(found)])
        if low.any() and self.rough.energetic:
            energy, taken = self.energy_bound(quadratics)
            found = np.where(low, np.maximum(found, energy), found)
            reach = np.maximum(reach, energy + 2 * taken)
        return found, reach

    def missing(self, rows: slice) -> Array:
        """Show that L is convex in some rows, up to rounding: what may be missing on its diagonal, (rows, cols)."""
        squares, method, proof = self.rough.part(rows).squares(), self.method[rows], self.claim.proof
        missing = np.zeros(squares.shape)
        if (method == _FW).any():
            missing[method == _FW] = self.common("rows of method fw", np.full(squares.shape[1], -self.shift))
        if (method == _DIAGONAL).any() and proof.tightening is not None:
            missing[method == _DIAGONAL] = self.common("rows of method diagonal", floats(proof.tightening))
        missing *= squares
        for place in np.flatnonzero(method == _SDP):
            missing[place] = self.own(rows.start + int(place))
        return missing

    def own(self, row: int) -> Array:
        """Show that the L of a row of method sdp is convex in the entries that are free; return what may be missing."""
        masks, terms = self.masks, self.terms
        fixed = masks.kept[row] | masks.pruned[row]
        if not (terms.point[row][fixed] == masks.kept[row][fixed]).all():
            raise CertificateError(f"the tangent of row {row} is taken where entries lack their fixed values")
        line = slice(row, row + 1)
        matrix, size = row_matrix(self.quadratics.part(line), terms.part(line), 0)
        more = len(terms.part(line).cut_row) + 2 * self.rough.rank  # terms, each of which may round an entry again
        found = check_semidefinite(f"L is not convex for row {row}", matrix, size, more)
        self.smallest.append(found.smallest)
        missing = np.zeros(len(fixed))
        missing[~fixed] = found.missing
        return missing

    def common(self, what: str, tightening: Array) -> Array:
        """Show that each G − Diag(tightening · diag G) is semidefinite, good for all rows; return what may be missing.

        The matrix is scaled by the Gram's own diagonal: what is taken off beyond it only adds to the norm.
        """
        if what not in self.shared:
            taken = fractions(tightening) if self.exact else tightening
            if self.quadratics.outputs is None:
                missing = [self._missing_of(what, gram, taken) for gram in self.quadratics.grams]
                self.shared[what] = np.stack(missing).max(axis=0)
            else:
                self.shared[what] = self._missing_of_pair(what, self.quadratics.outputs, self.quadratics.grams[0])
        return self.shared[what]

    def _missing_of_pair(self, what: str, outputs: Array, gram: Array) -> Array:
        """Show that S ⊗ G + shift · Diag(S ⊗ G) is semidefinite: by the eigenvalues of both, in correlation scaling.

        None of S is below −σ, so none is above rows · (1 + σ); a product is least where one of two is largest.
        """
        lacking = [self._lacking(what, matrix) for matrix in (outputs, gram)]
        most = [len(matrix) * (1 + less) for matrix, less in zip((outputs, gram), lacking, strict=True)]
        below = max(lacking[0] * most[1], lacking[1] * most[0])
        self.smallest.append(-float(below))
        open_to = 0 if self.exact else _PAIR
        below = below if self.exact else below * (1 + _ROUNDED)
        if not below <= number(self.shift, self.exact) + open_to:
            raise CertificateError(
                f"L is not convex for {what}: an eigenvalue may be {-float(below):.6g}, the shift is {self.shift:.6g}"
            )
        missing: Array = max(0.0, float(below) - self.shift) * self.rough.grams[0].diagonal()
        return np.zeros(len(gram)) if self.exact else missing

    def _lacking(self, what: str, matrix: Array) -> Any:
        """Return what no eigenvalue of a matrix is below, without its sign, in correlation scaling; shown if exact."""
        least = max(0.0, -least_eigenvalue(matrix.astype(np.float64)))
        if not self.exact:
            return least
        lacking, raised, places = number(least, True), matrix.copy(), np.arange(len(matrix))
        raised[places, places] *= 1 + lacking
        check_semidefinite(f"L is not convex for {what}", raised, np.abs(raised))
        return lacking

    def _missing_of(self, what: str, gram: Array, tightening: Array) -> Array:
        """Show it for one Gram."""
        live = gram.diagonal() > 0
        matrix = gram[live][:, live]
        places = np.arange(len(matrix))
        size = np.abs(matrix)
        matrix[places, places] -= tightening[live] * matrix[places, places]
        found = check_semidefinite(f"L is not convex for {what}", matrix, size)
        self.smallest.append(found.smallest)
        missing = np.zeros(len(live))
        missing[live] = found.missing
        return missing

    @cached_property
    def rational(self) -> _Check:
        """The same verification in rationals."""
        return _Check(self.problem, self.claim, True)

    def energy_bound(self, quadratics: Quadratics) -> tuple[Array, Array]:
        """Return what zᵀQz ≥ −(shift and what is missing) Σ q z² proves of a layer, and what float64 takes off it."""
        missing = self.common("the bound by 0", np.full(self.problem.shape[1], -self.shift))
        masks, squares = quadratics.masks, quadratics.squares()
        shifted = np.where(masks.kept, 0 * squares, number(self.shift, self.exact) * quadratics.gram_diagonal())
        if self.exact:  # nothing may be missing, and nothing is rounded
            bound = masks.least(shifted) - masks.block_sum(shifted)
            return bound, 0 * bound
        lacking = np.where(masks.kept, 0.0, squares * missing)
        off = shifted + lacking
        bound = masks.least(off) - masks.block_sum(off)
        rounded = (8 * UNIT + 2 * masks.least_error()) * masks.block_sum(off)
        if self.shift or missing.any():
            rounded += masks.block_sum(np.where(quadratics.used(), quadratics.lost(), 0.0))
        return bound - rounded, rounded + masks.block_sum(lacking)

    def listed(self, block: int) -> Any:
        """Return a proven lower bound on the objective of all masks of one coupled block."""
        rows = slice(block * self.height, (block + 1) * self.height)
        least = least_of_all(self.rough.part(rows), float(self.stored[block]))
        return least if self.exact else below(least)
