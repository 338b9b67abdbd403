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

from .arrays import LEAST, UNIT, Array, floats, fractions, number, sum_error
from .mask_set import MaskSet
from .quadratics import sound_gram


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
        rest_error: (rows,) float64, what it may have been rounded by.
        root: (cols,) float64, the square roots of H's diagonal, rounded up: |H_ij| ≤ root_i root_j.
        masks: the set.
    """

    target: Array
    gram: Array
    slope: Array
    slope_error: Array
    rest: Array
    rest_size: Array
    rest_error: Array
    root: Array
    masks: MaskSet

    @classmethod
    def of(cls, problem: ReconstructionProblem, exact: bool) -> Distances:
        """Read a problem, as rationals where ``exact``.

        Raises:
            RelaxPruneError: it was changed since it was checked.
        """
        lift = fractions if exact else np.copy
        matrix = sound_gram(problem.prepared)
        weight, gram = lift(floats(problem.weight)), lift(matrix)
        root = np.sqrt(matrix.diagonal()) * (1 + 8 * UNIT)
        masks = MaskSet.of(problem.polytope, problem.shape)
        none = np.zeros(problem.shape)
        zero = none[:, 0]
        plain = cls(weight, gram, 0 * weight, none, 0 * weight[:, 0], zero, zero, root, masks)
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
        error, rest_error = 0 * size, 0 * rest_size
        if not exact:
            error = (len(gram) + 8) * UNIT * size + 4 * len(gram) * LEAST
            rest_error = (2 * len(gram) + 32) * UNIT * (rest_size + 2 * (np.abs(slope) * light).sum(axis=1))
            rest_error += 2 * (error * light).sum(axis=1) + 64 * len(gram) * LEAST * (1 + (heavy + light).sum(axis=1))
        return replace(
            self,
            target=target,
            slope=slope,
            slope_error=error,
            rest=rest,
            rest_size=rest_size,
            rest_error=rest_error,
        )

    def part(self, rows: slice) -> Distances:
        """Return some whole coupled blocks."""
        return Distances(
            self.target[rows],
            self.gram,
            self.slope[rows],
            self.slope_error[rows],
            self.rest[rows],
            self.rest_size[rows],
            self.rest_error[rows],
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

    def proven_rest(self) -> tuple[Array, Array]:
        """Return what no weights remove, rounding taken off, and how much was: per coupled block, (blocks,) each."""
        rest = self.masks.block_sum(self.rest)
        if rest.dtype == object:
            return rest, 0 * rest
        lines = self.rest_error + sum_error(self.masks.rows_per_block()) * self.rest_size
        taken = self.masks.block_sum(lines) * (1 + 1e-6)
        return rest - taken, taken


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
