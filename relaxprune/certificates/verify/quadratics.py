"""The objective once more, for verification, in float64 or in rationals.

A row's objective is (m − o)ᵀ Q (m − o) + l·m with Q = Diag(a) G Diag(a), where o = 1, a = w and l = 0 for a layer, and
o = 0, a = 1 for a plain quadratic. All arrays are numpy's; in rationals they hold ``Fraction``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relaxprune.problems import Gram, MaskProblem, Problem, QuadraticProblem, RelaxPruneError

from .arrays import LEAST, UNIT, Array, floats, fractions, sum_error
from .mask_set import MaskSet


@dataclass(frozen=True, eq=False)
class Quadratics:
    """The objective of some whole coupled blocks.

    Attributes:
        factor: (rows, cols) a.
        gram: (cols, cols) G.
        offset: o.
        linear: (rows, cols) l.
        root: (cols,) float64, about the square roots of G's diagonal: |G_ij| ≤ root_i root_j.
        masks: the set.
    """

    factor: Array
    gram: Array
    offset: int
    linear: Array
    root: Array
    masks: MaskSet

    @classmethod
    def of(cls, problem: Problem) -> Quadratics:
        """Read a problem, in float64.

        Raises:
            RelaxPruneError: a kind of problem that verification does not know, or one that was changed since it was
                checked.
        """
        if not isinstance(problem, (MaskProblem, QuadraticProblem)):
            raise RelaxPruneError(f"verification knows mask and quadratic problems, got {type(problem).__name__}")
        gram = sound_gram(problem.prepared)
        masks = MaskSet.of(problem.polytope, problem.shape)
        root = _root(gram)
        if isinstance(problem, MaskProblem):
            factor = floats(problem.weight)
            return cls(factor, gram, 1, np.zeros((1, 1)), root, masks)
        return cls(np.ones(problem.shape), gram, 0, floats(problem.linear), root, masks)

    def part(self, rows: slice) -> Quadratics:
        """Return some whole coupled blocks."""
        linear = self.linear if self.offset else self.linear[rows]
        return Quadratics(self.factor[rows], self.gram, self.offset, linear, self.root, self.masks.part(rows))

    def rational(self) -> Quadratics:
        """Return the same numbers as fractions."""
        return Quadratics(
            fractions(self.factor), fractions(self.gram), self.offset, fractions(self.linear), self.root, self.masks
        )

    def value(self, point: Array) -> Array:
        """Return the objective per row (rows,) at a (rows, cols) point."""
        value, _ = self.value_and_half_gradient(point)
        return value

    def value_and_half_gradient(self, point: Array) -> tuple[Array, Array]:
        """Return the objective per row (rows,) and half its gradient (rows, cols)."""
        moved = point - self.offset
        half = self.factor * ((self.factor * moved) @ self.gram)
        value = (moved * half).sum(axis=1) + (self.linear * point).sum(axis=1)
        return value, half + self.linear / 2

    def allowance(self, point: Array, move: Array) -> Array:
        """Bound what float64 may have rounded of the value and of a tangent: per row, float64.

        Args:
            point: (rows, cols) float64.
            move: (rows, cols) float64, how far a mask may be from it.
        """
        cols = len(self.root)
        outer = np.abs(self.factor) * self.root  # |G_ij| ≤ root_i root_j
        inner = (outer * np.abs(point - self.offset)).sum(axis=1)
        slope = 2 * (cols + 6) * UNIT * inner * (outer * move).sum(axis=1)
        value = ((cols + 10) * UNIT + sum_error(cols)) * inner * inner
        linear = (
            (4 * UNIT + sum_error(cols)) * np.abs(self.linear * point) + 8 * UNIT * np.abs(self.linear) * move
        ).sum(axis=1)
        total: Array = slope + value + linear
        return total

    def lost(self) -> float:
        """Bound what a row's value and tangent lose where products are too small for float64's relative precision.

        What one product loses is multiplied by at most two entries of ``factor`` and one of ``gram`` after that, and
        by entries of points and masks, which are below 8.
        """
        cols = len(self.root)
        largest = max(1.0, float(np.abs(self.factor).max())) ** 2 * max(1.0, float(np.abs(self.gram).max()))
        return 2**12 * cols**3 * LEAST * largest

    def used(self) -> Array:
        """Tell which rows have anything but zeros: (rows,) bool."""
        quadratic = (self.factor != 0).any(axis=1) & bool(self.gram.any())
        found: Array = quadratic | (self.linear != 0).any(axis=1)
        return found

    def size(self, point: Array) -> Array:
        """Return the size of the objective's terms at a mask, per row, float64."""
        inner = (np.abs(self.factor) * self.root * np.abs(point - self.offset)).sum(axis=1)
        total: Array = inner * inner + np.abs(self.linear * point).sum(axis=1)
        return total

    def diagonal(self) -> Array:
        """Return q, the diagonals of the rows' Q: (rows, cols)."""
        squares: Array = self.factor * self.factor * self.gram.diagonal()
        return squares

    def matrix(self, row: int) -> Array:
        """Return the Q of one row: (cols, cols)."""
        line = self.factor[row]
        product: Array = self.gram * line * line[:, None]
        return product


def sound_gram(gram: Gram) -> Array:
    """Return a prepared Gram's matrix (n, n) in float64.

    Raises:
        RelaxPruneError: it is not what a ``Gram`` holds: it was changed since.
    """
    matrix = floats(gram.matrix)
    diagonal = matrix.diagonal()
    symmetric = np.isfinite(matrix).all() and (matrix == matrix.T).all()
    if not symmetric or not (diagonal >= 0).all() or matrix[diagonal == 0].any():
        raise RelaxPruneError(f"{gram.name} was changed in place after it was checked; build a new problem from it")
    return matrix


def _root(gram: Array) -> Array:
    """Return (cols,) r with |G_ij| ≤ r_i r_j: the square roots of the diagonal, raised where G is indefinite."""
    root = np.sqrt(gram.diagonal())
    live = np.where(root > 0, root, 1.0)
    largest = max(float((np.abs(line) / live).max() / own) for line, own in zip(gram, live, strict=True))
    raised: Array = root * np.sqrt(max(1.0, largest)) * (1 + 4 * UNIT)
    return raised
