"""The convex functions below the objective once more, and what their tangents prove, in float64 or in rationals.

See ``TangentProof`` for the mathematics. Whatever float64 may have rounded is bounded here and given back as an
allowance, which is taken OFF what was rebuilt before a claim is compared with it. So a certificate gains nothing by
numbers that make rounding large: they only take more off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import UNIT, Array, floats, fractions, sum_error
from .claim import METHODS, TangentProof
from .quadratics import Quadratics


@dataclass(frozen=True, eq=False)
class Terms:
    """What a proof adds to the objective (see ``TangentProof`` for the shapes): d is resolved to (rows, cols)."""

    point: Array
    added: Array
    weight: Array  # (rows,) ρ
    cut_row: Array
    cut_index: Array
    cut_sign: Array
    cut_multiplier: Array

    @classmethod
    def of(cls, proof: TangentProof, shift: float, quadratics: Quadratics, exact: bool) -> Terms:
        """Read the terms of a proof for a whole problem, as rationals if ``exact``."""
        lift = fractions if exact else _same
        point, scale = lift(floats(proof.point)), lift(floats(proof.scale))
        rows = len(point)
        column = np.repeat(scale, rows // len(scale))[:, None]
        method = proof.row_method.cpu().numpy()
        tightening = np.full(point.shape, -shift)
        if proof.tightening is not None:
            tightening[method == METHODS.index("diagonal")] = floats(proof.tightening)
        added = lift(tightening) * quadratics.gram_diagonal()
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

    def used(self) -> Array:
        """Tell which rows have a term that is not 0: (rows,) bool."""
        found: Array = (self.added != 0).any(axis=1) | (self.weight != 0)
        found[self.cut_row] = True
        return found

    @property
    def move(self) -> Array:
        """How far an entry of a mask can be from the point's: (rows, cols)."""
        farthest: Array = np.maximum(np.abs(self.point), np.abs(1 - self.point))
        return farthest

    def cut_sums(self) -> Array:
        """Return s·x of every cut: (m,)."""
        signs = np.concatenate([0 * self.point[:, :1] + 1, 1 - 2 * self.point], axis=1)
        sums: Array = (signs[self.cut_row[:, None], self.cut_index] * self.cut_sign).sum(axis=1)
        return sums

    def cuts_of(self, row: int) -> tuple[Array, Array, Array]:
        """Return entries, signs and multipliers of a row's cuts."""
        own = self.cut_row == row
        return self.cut_index[own], self.cut_sign[own], self.cut_multiplier[own]


def tangent_bound(quadratics: Quadratics, terms: Terms, missing: Array) -> tuple[Array, Array]:
    """Return the least value of the tangents per coupled block, and what is to be taken off it: (blocks,) each.

    Args:
        quadratics: the objective of some whole coupled blocks.
        terms: what the proof adds to it there.
        missing: (rows, cols) float64, with which on its diagonal every row's L is convex.
    """
    point, masks = terms.point, quadratics.masks
    value, half = quadratics.value_and_half_gradient(point)
    value = value + (terms.added * point * (1 - point)).sum(axis=1)
    half = half + terms.added * (1 - 2 * point) / 2
    if masks.row_count is not None:
        width, keep = masks.row_count
        sums = point.reshape(len(point), -1, width).sum(axis=2)
        value = value + terms.weight * (sums * (sums - keep)).sum(axis=1)
        half = half + np.repeat(terms.weight[:, None] * (2 * sums - keep) / 2, width, axis=1)
    extra, slope = _cut_terms(terms)
    half = half + slope
    lines = value + extra - 2 * (half * point).sum(axis=1)
    least = masks.block_sum(lines) + 2 * masks.least(half)
    if point.dtype == object:
        return least, 0 * least  # a float among them would round them all
    cols = point.shape[1]
    rounded = quadratics.allowance(point, terms.move) + _added_allowance(terms, masks.row_count)
    rounded += 8 * UNIT * (np.abs(value) + np.abs(extra)) + (missing * terms.move**2).sum(axis=1)
    rounded += 2 * (sum_error(cols) + 2 * UNIT) * np.abs(half * point).sum(axis=1)
    rounded += np.where(quadratics.used() | terms.used(), quadratics.lost(), 0.0)
    rounded += sum_error(masks.rows_per_block()) * np.abs(lines) + 2 * masks.least_error() * np.abs(half).sum(axis=1)
    return least, masks.block_sum(rounded) * (1 + 1e-6) + 4 * UNIT * np.abs(least)


def point_error(quadratics: Quadratics, terms: Terms) -> Array:
    """Return how much more the tangents at a point that is not rounded might prove, (blocks,) float64.

    Nothing rests on it: rationals, which begin at that point, are asked up to here.
    """
    move = terms.move
    outer = (quadratics.reach * move).sum(axis=1)
    curve = (
        outer * quadratics.felt(outer)
        + (np.abs(terms.added) * move * move).sum(axis=1)
        + terms.weight * move.sum(axis=1) ** 2
    )
    curve += np.bincount(terms.cut_row, weights=600 * terms.cut_multiplier, minlength=len(move))
    return quadratics.masks.block_sum(16 * UNIT * curve)


def _added_allowance(terms: Terms, row_count: tuple[int, int] | None) -> Array:
    """Bound what float64 may have rounded of the terms' values and slopes: per row, float64."""
    point, move = terms.point, terms.move
    cols, reach = point.shape[1], move.max(axis=1)
    curve = (sum_error(cols) + 10 * UNIT) * np.abs(point * (1 - point)) + 8 * UNIT * np.abs(1 - 2 * point) * move
    total: Array = (np.abs(terms.added) * curve).sum(axis=1)
    if row_count is not None:
        width, keep = row_count
        sums, moves = (np.abs(values).reshape(len(point), -1, width).sum(axis=2) for values in (point, move))
        counted = ((2 * sums + keep) * (sums + moves)).sum(axis=1)
        total = total + (sum_error(width) + sum_error(cols) + 8 * UNIT) * terms.weight * counted
    row, weight = terms.cut_row, terms.cut_multiplier
    if len(row):
        entries = np.concatenate([np.ones((len(point), 1)), np.abs(1 - 2 * point)], axis=1)
        size = (entries[row[:, None], terms.cut_index] + 1).sum(axis=1)  # 1 for the rounding of 1 − 2p itself
        sums = np.abs(terms.cut_sums())
        number = np.bincount(row, minlength=len(point))[row] + 4
        value = number * np.abs(sums * sums - 1) + 16 * size * sums + 2
        slope = 6 * (2 * number * sums + 10 * size) * reach[row]
        total = total + UNIT * np.bincount(row, weights=weight * (value + slope), minlength=len(point))
    return total


def _cut_terms(terms: Terms) -> tuple[Array, Array]:
    """Return −Σ λ ((s·x)² − 1) per row, and half its gradient (rows, cols)."""
    rows, cols = terms.point.shape
    value = 0 * terms.point[:, 0]
    slope = np.zeros((rows, cols + 1), dtype=terms.point.dtype)
    row, weight = terms.cut_row, terms.cut_multiplier
    if len(row):
        sums = terms.cut_sums()
        np.add.at(value, row, -weight * (sums * sums - 1))
        np.add.at(slope, (row[:, None], terms.cut_index), 2 * (weight * sums)[:, None] * terms.cut_sign)
    return value, slope[:, 1:]


def row_matrix(quadratics: Quadratics, terms: Terms, row: int) -> tuple[Array, Array]:
    """Return the matrix of a row's L on its free entries, and the sum of its terms' absolute values: (n, n)."""
    free = ~(quadratics.masks.kept[row] | quadratics.masks.pruned[row])
    matrix, size = quadratics.matrix(row)
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


def _same(values: Array) -> Array:
    """Return the argument, as a copy that may be written to."""
    return values.copy()
