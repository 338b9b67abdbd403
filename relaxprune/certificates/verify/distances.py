"""The error of weights that move once more, for verification, in float64 or in rationals.

With H the damped Gram, b = W C + ridge W (b = W H without ``cross``) and the energy e₀, the error of weights v is
f(v) = e₀ − 2 b·v + vᵀ H v, row by row. For any t it is

    f(v) = (t − v)ᵀ H (t − v) + 2 u·(t − v) + rest,   u = b − t H,   rest = e₀ − tᵀ H t − 2 u·t.

Without ``cross`` t is W, so that u and rest vanish; with it t is near the best weights, and u is what solving for them
has left. Nothing has to be believed of t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from relaxprune.problems import ReconstructionProblem

from .arrays import UNIT, Array, floats, fractions, number
from .mask_set import MaskSet

_REST = 1e-12  # of the energies: what ``rest``, a difference of two of them, is taken up to


@dataclass(frozen=True, eq=False)
class Distances:
    """The error of some whole coupled blocks.

    Attributes:
        target: (rows, cols) t.
        gram: (cols, cols) H.
        slope: (rows, cols) u, 0 without ``cross``.
        slope_error: (rows, cols) float64, what u may have been rounded by.
        rest: (rows,) of f, 0 without ``cross``.
        rest_size: (rows,) float64, the energies that it is a difference of.
        root: (cols,) float64, the square roots of H's diagonal, rounded up: |H_ij| ≤ root_i root_j.
        masks: the set.
    """

    target: Array
    gram: Array
    slope: Array
    slope_error: Array
    rest: Array
    rest_size: Array
    root: Array
    masks: MaskSet

    @classmethod
    def of(cls, problem: ReconstructionProblem, exact: bool) -> Distances:
        """Read a problem, as rationals if ``exact``."""
        lift = fractions if exact else np.copy
        weight, gram = lift(floats(problem.weight)), lift(floats(problem.prepared.matrix))
        root = np.sqrt(floats(problem.prepared.matrix).diagonal()) * (1 + 8 * UNIT)
        masks = MaskSet.of(problem.polytope, problem.shape)
        rows = len(weight)
        none = np.zeros(problem.shape)
        plain = cls(weight, gram, 0 * weight, none, 0 * weight[:, 0], np.zeros(rows), root, masks)
        if problem.cross is None or problem.dense_gram is None:
            return plain
        return plain._corrected(problem.ridge, lift(floats(problem.cross)), lift(floats(problem.dense_gram)))

    def _corrected(self, ridge: float, cross: Array, dense: Array) -> Distances:
        """Return the distances from the best weights, where these are not W, the present target."""
        weight, live, exact = self.target, self.root > 0, self.gram.dtype == object
        cost = number(ridge, exact)
        wanted, target = weight @ cross + cost * weight, 0 * weight
        target[:, live] = solved(self.gram[live][:, live], wanted[:, live])
        slope = wanted - target @ self.gram
        given = energy(weight, dense) + cost * (weight**2).sum(axis=1)
        rest = given - energy(target, self.gram) - 2 * (slope * target).sum(axis=1)
        heavy, light, gram, joint, own = (
            np.abs(values.astype(np.float64)) for values in (weight, target, self.gram, cross, dense)
        )
        size = heavy @ joint + ridge * heavy + light @ gram
        rest_size = energy(heavy, own) + ridge * (heavy**2).sum(axis=1) + energy(light, gram)
        error = 0 * size if exact else (len(gram) + 8) * UNIT * size
        return replace(self, target=target, slope=slope, slope_error=error, rest=rest, rest_size=rest_size)

    def part(self, rows: slice) -> Distances:
        """Return some whole coupled blocks."""
        return Distances(
            self.target[rows],
            self.gram,
            self.slope[rows],
            self.slope_error[rows],
            self.rest[rows],
            self.rest_size[rows],
            self.root,
            self.masks.part(rows),
        )

    def value(self, weight: Array) -> Array:
        """Return the error of weights (rows, cols), per row."""
        moved = self.target - weight
        total: Array = energy(moved, self.gram) + 2 * (self.slope * moved).sum(axis=1) + self.rest
        return total

    def size(self, weight: Array) -> Array:
        """Return the size of the terms of ``value``, per row, float64."""
        moved = (np.abs(self.target.astype(np.float64) - weight) * self.root).sum(axis=1)
        total: Array = moved * moved + self.rest_size
        return total

    def proven_rest(self) -> Array:
        """Return what no weights remove, per coupled block, at least 0.

        An error is never negative: that the three moments are of the same tokens is the problem's word.
        """
        rest = self.masks.block_sum(self.rest)
        allowed = self.masks.block_sum(_REST * self.rest_size)
        lifted = fractions(allowed) if rest.dtype == object else allowed
        found: Array = np.maximum(rest + lifted, 0 * rest)
        return found


def energy(values: Array, matrix: Array) -> Array:
    """Return v M vᵀ of each vector v: (..., cols) gives (...)."""
    total: Array = ((values @ matrix) * values).sum(axis=-1)
    return total


def solved(matrix: Array, right: Array) -> Array:
    """Return X with X M = ``right``: by Gauss in rationals, by LAPACK in float64, where any solution will do."""
    if matrix.dtype != object:
        found: Array = np.linalg.solve(matrix, right.T).T
        return found
    n = len(matrix)
    table = np.concatenate([matrix, right.T], axis=1)
    for k in range(n):
        table[k] = table[k] / table[k, k]  # of a definite matrix no pivot is 0
        for i in range(n):
            if i != k:
                table[i] = table[i] - table[i, k] * table[k]
    solution: Array = table[:, n:].T
    return solution
