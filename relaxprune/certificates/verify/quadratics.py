"""The objective once more, for verification, in float64 or in rationals.

A row's objective is (m − o)ᵀ Q (m − o) + (a ∘ b)·(m − o) with Q = Diag(a) (G + FᵀF) Diag(a), where o = 1 and a = w
for a layer, and o = 0, a = 1 for a plain quadratic. Rows share G, or groups of them do; F is a row's own, if it has
one. If S couples rows, Q is that of all rows together, with S_ik before the entries of G between rows i and k. All
arrays are numpy's; in rationals they hold ``Fraction``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from relaxprune.problems import Gram, MaskProblem, Problem, QuadraticProblem, RelaxPruneError

from .arrays import LEAST, UNIT, Array, floats, fractions, sum_error
from .mask_set import MaskSet


@dataclass(frozen=True, eq=False)
class Quadratics:
    """The objective of some whole coupled blocks.

    Attributes:
        factor: (rows, cols) a.
        grams: the matrices G, (cols, cols) each.
        group: (rows,) int64, which of them a row has.
        own: (rows, rank, cols) F, of rank 0 for none.
        outputs: (rows, rows) S, or None.
        offset: o.
        term: (rows, cols) b.
        reach: (rows, cols) float64, r with |Q_ij| ≤ r_i r_j.
        masks: the set.
    """

    factor: Array
    grams: tuple[Array, ...]
    group: Array
    own: Array
    outputs: Array | None
    offset: int
    term: Array
    reach: Array
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
        objective, shape = problem.minimised, problem.shape
        grams = tuple(sound_gram(gram) for gram in objective.grams)
        numbers = objective.row_groups
        group = np.zeros(shape[0], dtype=np.int64) if numbers is None else numbers.numpy()
        own = np.zeros((shape[0], 0, shape[1])) if objective.fisher is None else floats(objective.fisher)
        layer = isinstance(problem, MaskProblem)
        factor = floats(problem.term) if layer else np.ones(shape)
        linear = objective.linear if layer else problem.term
        term = np.broadcast_to(np.zeros((1, 1)), shape) if linear is None else floats(linear)
        outputs = None if objective.outputs is None else sound_gram(objective.outputs)
        masks = MaskSet.of(problem.polytope, shape, joined=outputs is not None)
        made = cls(factor, grams, group, own, outputs, int(layer), term, factor, masks)
        roots = np.stack([_root(gram) for gram in grams])
        reach = np.abs(factor) * (roots[0] if len(roots) == 1 else roots[group])
        if outputs is not None:
            reach = reach * _root(outputs)[:, None]
        if made.rank:
            reach = np.hypot(reach, np.abs(factor) * np.sqrt((own * own).sum(axis=1))) * (1 + (made.rank + 8) * UNIT)
        return replace(made, reach=reach)

    @cached_property
    def linear(self) -> Array:
        """The linear term a ∘ b, (rows, cols); in float64 a layer's is rounded once."""
        product: Array = self.factor * self.term
        return product

    @property
    def rank(self) -> int:
        """The rank of the rows' own terms."""
        return int(self.own.shape[1])

    @property
    def energetic(self) -> bool:
        """Whether the objective is zᵀQz alone, which is at least 0 for semidefinite Q."""
        return self.offset == 1 and not self.term.any()

    def part(self, rows: slice) -> Quadratics:
        """Return some whole coupled blocks: all rows where S couples them."""
        return replace(
            self,
            factor=self.factor[rows],
            group=self.group[rows],
            own=self.own[rows],
            term=self.term[rows],
            reach=self.reach[rows],
            masks=self.masks.part(rows),
        )

    def rational(self) -> Quadratics:
        """Return the same numbers as fractions."""
        return replace(
            self,
            factor=fractions(self.factor),
            grams=tuple(fractions(gram) for gram in self.grams),
            own=fractions(self.own),
            outputs=None if self.outputs is None else fractions(self.outputs),
            term=fractions(self.term),
        )

    def product(self, left: Array) -> Array:
        """Return the rows of ``left`` (rows, cols) times their G + FᵀF, or S left G + …."""
        first = int(self.group[0]) if len(self.group) else 0
        if (self.group == first).all():
            product: Array = left @ self.grams[first]
        else:
            product = np.empty_like(left)
            for number in np.unique(self.group):
                chosen = self.group == number
                product[chosen] = left[chosen] @ self.grams[number]
        if self.outputs is not None:
            product = self.outputs @ product
        if self.rank:
            inner = (self.own * left[:, None]).sum(axis=2)
            product = product + (self.own * inner[:, :, None]).sum(axis=1)
        return product

    def value(self, point: Array) -> Array:
        """Return the objective per row (rows,) at a (rows, cols) point."""
        value, _ = self.value_and_half_gradient(point)
        return value

    def value_and_half_gradient(self, point: Array) -> tuple[Array, Array]:
        """Return the objective per row (rows,) and half its gradient (rows, cols)."""
        moved = point - self.offset
        half = self.factor * self.product(self.factor * moved)
        value = (moved * half).sum(axis=1) + (self.linear * moved).sum(axis=1)
        return value, half + self.linear / 2

    def values(self, masks: Array) -> Array:
        """Return the objectives of many masks of one coupled block: (masks,) float64 from (masks, height, cols)."""
        lead = masks - self.offset
        moved = lead * self.factor
        image = moved @ self.grams[int(self.group[0])]
        image = image if self.outputs is None else self.outputs @ image
        values: Array = (image * moved).sum(axis=(1, 2)) + (lead * self.linear).sum(axis=(1, 2))
        if self.rank:
            values += np.square((self.own * moved[:, :, None]).sum(axis=3)).sum(axis=(1, 2))
        return values

    def allowance(self, point: Array, move: Array) -> Array:
        """Bound what float64 may have rounded of the value and of a tangent: per row, float64.

        Args:
            point: (rows, cols) float64.
            move: (rows, cols) float64, how far a mask may be from it.
        """
        count = point.shape[1] + self.more_terms
        moved = np.abs(point - self.offset)
        inner = (self.reach * moved).sum(axis=1)
        felt = self.felt(inner)
        slope = 2 * (count + 6) * UNIT * felt * (self.reach * move).sum(axis=1)
        value = ((count + 10) * UNIT + sum_error(point.shape[1])) * inner * felt
        linear = (
            (4 * UNIT + sum_error(point.shape[1])) * np.abs(self.linear) * moved + 8 * UNIT * np.abs(self.linear) * move
        ).sum(axis=1)
        total: Array = slope + value + linear
        return total

    def lost(self) -> float:
        """Bound what a row's value and tangent lose where products are too small for float64's relative precision.

        What one product loses is multiplied by at most two entries of ``factor`` and one of a Gram, or two of F, after
        that, and by entries of points and masks, which are below 8.
        """
        count = self.factor.shape[1] + self.more_terms
        own = float(np.abs(self.own).max(initial=0.0))
        entries = max(1.0, own * own, *(float(np.abs(gram).max()) for gram in self.grams))
        entries *= 1.0 if self.outputs is None else max(1.0, float(np.abs(self.outputs).max()))
        largest = max(1.0, float(np.abs(self.factor).max()))
        return float(2**12 * count**3 * LEAST * (largest**2 * entries))

    def used(self) -> Array:
        """Tell which rows have anything but zeros: (rows,) bool."""
        something = any(gram.any() for gram in self.grams) or bool(self.own.any())
        pulled = (self.factor != 0) & (self.term != 0)  # their product may be too small for float64
        found: Array = ((self.factor != 0).any(axis=1) & something) | pulled.any(axis=1)
        return found

    def size(self, point: Array) -> Array:
        """Return the size of the objective's terms at a mask, per row, float64."""
        moved = np.abs(point - self.offset)
        inner = (self.reach * moved).sum(axis=1)
        total: Array = inner * self.felt(inner) + (np.abs(self.linear) * moved).sum(axis=1)
        return total

    def gram_diagonal(self) -> Array:
        """Return the diagonals of the rows' Diag(a) G Diag(a), without what is their own: (rows, cols)."""
        diagonals = np.stack([gram.diagonal() for gram in self.grams])
        squares: Array = self.squares() * (diagonals[0] if len(diagonals) == 1 else diagonals[self.group])
        return squares

    def squares(self) -> Array:
        """Return what a Gram's diagonal is multiplied by, a² and S_ii: (rows, cols)."""
        squares: Array = self.factor * self.factor
        return squares if self.outputs is None else squares * self.outputs.diagonal()[:, None]

    def felt(self, sizes: Array) -> Array:
        """Return what each row feels of the rows' sizes (rows,): its own, or that of all together."""
        return sizes if self.outputs is None else np.full_like(sizes, sizes.sum())

    @property
    def more_terms(self) -> int:
        """How many terms the sums have beside those over columns."""
        return 2 * self.rank + (0 if self.outputs is None else len(self.outputs))

    def matrix(self, row: int) -> tuple[Array, Array]:
        """Return the Q of one row, and the sum of its terms' absolute values: (cols, cols) each."""
        line = self.factor[row]
        product: Array = self.grams[int(self.group[row])] * line * line[:, None]
        size = np.abs(product)
        for own in self.own[row] * line:
            outer = own[:, None] * own
            product, size = product + outer, size + np.abs(outer)
        return product, size


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
