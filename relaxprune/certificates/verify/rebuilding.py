"""The objective and the convex functions below it once more, for verification, in float64 or in rationals.

Written from the mathematics of ``underestimator`` and sharing no code with it: a row's objective is
(m − o)ᵀ Q (m − o) + l·m with Q = Diag(a) G Diag(a), where o = 1, a = w and l = 0 for a layer, and o = 0, a = 1 for a
plain quadratic. All arrays are numpy's; in rationals they hold ``Fraction``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from relaxprune.problems import MaskProblem, Problem, QuadraticProblem, RelaxPruneError

from ..underestimator import METHODS, Proof
from .definite import fractions
from .mask_set import MaskSet

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Quadratics:
    """The objective of some whole coupled blocks.

    Attributes:
        factor: (rows, cols) a.
        gram: (cols, cols) G.
        offset: o.
        linear: (rows, cols) l.
        root: (cols,) float64, the square roots of G's diagonal, for sizes.
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
            RelaxPruneError: a kind of problem that verification does not know.
        """
        if not isinstance(problem, (MaskProblem, QuadraticProblem)):
            raise RelaxPruneError(f"verification knows mask and quadratic problems, got {type(problem).__name__}")
        gram = floats(problem.prepared.matrix)
        masks = MaskSet.of(problem.polytope, problem.shape)
        root = np.sqrt(gram.diagonal())
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

    def magnitude(self, point: Array) -> Array:
        """Return the size of the terms of value and tangent per row, float64: |G_ij| ≤ sqrt(G_ii G_jj)."""
        outer = np.abs(self.factor) * self.root
        inner = (outer * np.abs(point - self.offset)).sum(axis=1)
        linear = (np.abs(self.linear) * (1 + np.abs(point))).sum(axis=1)
        total: Array = inner * (inner + outer.sum(axis=1)) + linear
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


@dataclass(frozen=True, eq=False)
class Terms:
    """What a proof adds to the objective, in float64 (see ``Proof`` for the shapes): d is resolved to (rows, cols)."""

    point: Array
    added: Array
    weight: Array  # (rows,) ρ
    cut_row: Array
    cut_index: Array
    cut_sign: Array
    cut_multiplier: Array

    @classmethod
    def of(cls, proof: Proof, shift: float, quadratics: Quadratics, exact: bool) -> Terms:
        """Read the terms of a proof for a whole problem, as rationals where ``exact``."""
        lift = fractions if exact else _same
        point, scale = lift(floats(proof.point)), lift(floats(proof.scale))
        rows = len(point)
        column = np.repeat(scale, rows // len(scale))[:, None]
        method = proof.row_method.cpu().numpy()
        tightening = np.full(point.shape, -shift)
        if proof.tightening is not None:
            tightening[method == METHODS.index("diagonal")] = floats(proof.tightening)
        added = lift(tightening) * quadratics.diagonal()
        dense = proof.dense_rows.cpu().numpy()
        added[dense] = lift(floats(proof.dense_diagonal))
        weight = lift(np.zeros(rows))
        weight[dense] = lift(floats(proof.dense_weight))
        return cls(
            point=1 - column * (1 - point),
            added=added,
            weight=weight,
            cut_row=proof.cut_row.cpu().numpy(),
            cut_index=proof.cut_index.cpu().numpy(),
            cut_sign=proof.cut_sign.cpu().numpy().astype(np.int64),
            cut_multiplier=lift(floats(proof.cut_multiplier)),
        )

    def part(self, rows: slice) -> Terms:
        """Return the terms of a run of rows."""
        cuts = (self.cut_row >= rows.start) & (self.cut_row < rows.stop)
        return Terms(
            self.point[rows],
            self.added[rows],
            self.weight[rows],
            self.cut_row[cuts] - rows.start,
            self.cut_index[cuts],
            self.cut_sign[cuts],
            self.cut_multiplier[cuts],
        )

    def cuts_of(self, row: int) -> tuple[Array, Array, Array]:
        """Return entries, signs and multipliers of a row's cuts."""
        own = self.cut_row == row
        return self.cut_index[own], self.cut_sign[own], self.cut_multiplier[own]


def tangent_bound(quadratics: Quadratics, terms: Terms) -> tuple[Array, Array]:
    """Return the least value of the tangent per coupled block, and the size of its terms as float64: (blocks,) each."""
    point, masks = terms.point, quadratics.masks
    value, half = quadratics.value_and_half_gradient(point)
    size = quadratics.magnitude(point.astype(np.float64)) if point.dtype != object else np.zeros(len(point))
    value = value + (terms.added * point * (1 - point)).sum(axis=1)
    half = half + terms.added * (1 - 2 * point) / 2
    magnitude = np.abs(terms.added) * (1 + np.abs(point)) ** 2
    if masks.row_count is not None:
        width, keep = masks.row_count
        sums = point.reshape(len(point), -1, width).sum(axis=2)
        value = value + terms.weight * (sums * (sums - keep)).sum(axis=1)
        half = half + np.repeat(terms.weight[:, None] * (2 * sums - keep) / 2, width, axis=1)
        size = size + 2 * (terms.weight * ((np.abs(sums) + width) ** 2).sum(axis=1)).astype(np.float64)
    extra, slope, cut_size = _cut_terms(terms)
    least = masks.block_sum(value + extra - 2 * ((half + slope) * point).sum(axis=1)) + 2 * masks.least(half + slope)
    return least, masks.block_sum(size + magnitude.sum(axis=1).astype(np.float64) + cut_size)


def _cut_terms(terms: Terms) -> tuple[Array, Array, Array]:
    """Return −Σ λ ((s·x)² − 1) per row, half its gradient (rows, cols), and its size per row."""
    rows, cols = terms.point.shape
    value, size = 0 * terms.point[:, 0], np.zeros(rows)
    slope = np.zeros((rows, cols + 1), dtype=terms.point.dtype)
    signs = np.concatenate([0 * terms.point[:, :1] + 1, 1 - 2 * terms.point], axis=1)
    row, weight = terms.cut_row, terms.cut_multiplier
    if len(row):
        sums = (signs[row[:, None], terms.cut_index] * terms.cut_sign).sum(axis=1)
        np.add.at(value, row, -weight * (sums * sums - 1))
        np.add.at(slope, (row[:, None], terms.cut_index), 2 * (weight * sums)[:, None] * terms.cut_sign)
        np.add.at(size, row, (weight * (np.abs(sums) + 6) ** 2).astype(np.float64))
    return value, slope[:, 1:], size


def row_matrix(quadratics: Quadratics, terms: Terms, row: int) -> tuple[Array, Array]:
    """Return the matrix of a row's L on its free entries, and the sum of its terms' absolute values: (n, n)."""
    free = ~(quadratics.masks.kept[row] | quadratics.masks.pruned[row])
    matrix = quadratics.matrix(row)
    size = np.abs(matrix)
    places = np.arange(len(matrix))
    matrix[places, places] -= terms.added[row]
    size[places, places] += np.abs(terms.added[row])
    if quadratics.masks.row_count is not None:
        group = places // quadratics.masks.row_count[0]
        together = (group[:, None] == group).astype(int) * terms.weight[row]
        matrix, size = matrix + together, size + together
    index, sign, weight = terms.cuts_of(row)
    if len(index):
        whole = np.zeros((2, len(matrix) + 1, len(matrix) + 1), dtype=matrix.dtype)
        pairs = (index[:, :, None], index[:, None, :])
        np.add.at(whole[0], pairs, 4 * weight[:, None, None] * (sign[:, :, None] * sign[:, None, :]))
        np.add.at(whole[1], pairs, 4 * weight[:, None, None] * np.ones((3, 3), dtype=int))
        matrix, size = matrix - whole[0, 1:, 1:], size + whole[1, 1:, 1:]
    return matrix[free][:, free], size[free][:, free]


def floats(values: Tensor) -> Array:
    """Return a tensor of floats as float64, exactly."""
    array: Array = values.detach().cpu().double().numpy()
    return array


def _same(values: Array) -> Array:
    """Return the argument, as a copy that may be written to."""
    return values.copy()
