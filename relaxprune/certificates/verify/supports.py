"""The least error of weights on every support of a tiny coupled block, for the method that tries them all."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property

import numpy as np

from relaxprune.problems import ReconstructionProblem

from .arrays import LEAST, UNIT, Array
from .definite import least_eigenvalue
from .distances import Distances, energy, solved
from .listing import all_masks, least_proven
from .verified import CertificateError


class LeastErrors:
    """The least errors of one problem, beyond what no weights remove.

    Args:
        problem: the problem.
        distances: of the problem, in float64 or in rationals.
        live: (cols,) bool, the columns with a diagonal above 0.
    """

    def __init__(self, problem: ReconstructionProblem, distances: Distances, live: Array) -> None:
        """Show that H is positive definite, see the class."""
        self.problem, self.live, self.height = problem, live, distances.masks.rows_per_block()
        self.rough = Distances.of(problem, False) if distances.gram.dtype == object else distances
        self.definite = least_eigenvalue(self.rough.gram[live][:, live])
        if not self.definite > 0:
            raise CertificateError("method 'exact' needs a Gram that is proven positive definite")

    @cached_property
    def rational(self) -> Distances:
        """The problem in rationals, for when float64 leaves a doubt."""
        return Distances.of(self.problem, True)

    def least(self, block: int, stored: float) -> Fraction:
        """Return a proven lower bound on the error of one coupled block, tight enough to judge ``stored``."""
        rows = slice(block * self.height, (block + 1) * self.height)
        rough = self.rough.part(rows)
        height, cols = rough.target.shape
        return least_proven(
            (masks & self.live for masks in all_masks(rough.masks, height * cols * cols)),
            lambda some: self._proven(rough, some),
            lambda mask: self._exact(rows, mask),
            stored,
        )

    def _proven(self, part: Distances, masks: Array) -> Array:
        """Return what float64 proves of the least error on some masks: (masks,) from (masks, height, cols).

        Weights v with the residual g of the normal equations are at most gᵀ H_SS⁻¹ g above the least.
        """
        cols, diagonal = masks.shape[2], np.where(self.live, part.gram.diagonal(), 1.0)
        chosen = masks[:, :, :, None] & masks[:, :, None, :]
        system = np.where(chosen, part.gram, np.eye(cols) * diagonal)
        right = np.where(masks, part.target @ part.gram + part.slope, 0.0)
        moved = part.target - np.linalg.solve(system, right[..., None])[..., 0] * masks
        pulled = moved @ part.gram + part.slope
        size = (np.abs(moved) * part.root).sum(axis=2)
        rounded = (cols + 6) * UNIT * (part.root * size[:, :, None] + np.abs(part.slope)) + part.slope_error
        rounded += 2 * cols * LEAST
        far = np.abs(pulled) + rounded
        excess = (far * (far / diagonal) * masks).sum(axis=2) / self.definite
        value = energy(moved, part.gram) + 2 * (part.slope * moved).sum(axis=2)
        noise = (3 * cols + 16) * UNIT * (size * size + 2 * np.abs(part.slope * moved).sum(axis=2))
        noise += 2 * (part.slope_error * np.abs(moved)).sum(axis=2) + 4 * (cols + 4) * UNIT * excess
        noise += 64 * cols * LEAST * (1 + np.abs(moved).sum(axis=2))
        lines: Array = value - excess - noise
        total: Array = lines.sum(axis=1) - masks.shape[1] * UNIT * np.abs(lines).sum(axis=1)
        return total

    def _exact(self, rows: slice, mask: Array) -> Fraction:
        """Return the least error on one mask (height, cols) in rationals."""
        part, total = self.rational.part(rows), Fraction(0)
        for target, slope, support in zip(part.target, part.slope, mask, strict=True):
            moved, wanted = target.copy(), target @ part.gram + slope
            if support.any():
                moved[support] = moved[support] - solved(part.gram[support][:, support], wanted[None, support])[0]
            total += energy(moved[None], part.gram)[0] + 2 * (slope * moved).sum()
        return total
