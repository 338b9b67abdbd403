"""What a solver sees of a problem: a quadratic over a polytope, one independent quadratic per row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from typing import Self

import torch
from torch import Tensor

from .gram import Gram, PsdProof
from .lowered import Lowered
from .neighbours import Neighbours
from .polytopes import Polytope
from .polytopes.base import Shape
from .precision import row_blocks

_JUDGE_BYTES = 256 * 2**20
_JUDGE_MATRICES = 5


class Quadratic(ABC):
    """A quadratic over a polytope, one per row: what a step of Frank-Wolfe needs.

    Written for a relaxed mask m as f(m) = quadratic, whose half gradient is affine in m with the linear part Q (one
    symmetric matrix per row). For any θ the annealed objective f_θ(m) = f(m) + θ Σ q m (1 − m), with q = diag(Q),
    equals f on every mask and has the quadratic part Q − θ Diag(q).
    """

    polytope: Polytope
    diagonal: Tensor  # (rows, cols): q, the diagonal of every row's Q
    lowered: Lowered | None = None  # what ``image`` multiplies by in place of the matrix; see ``Working.lower``

    @property
    def source(self) -> Gram | None:
        """What every row's Q is made of, unscaled; None where a solver made the problem up."""
        return getattr(self, "prepared", None)

    @abstractmethod
    def image(self, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """Return Q applied to a direction (rows, cols): the one matrix product of an iteration."""

    def full(self) -> Self:
        """Return the same quadratic without ``Working.lower``: every product in the dtype of its tensors."""
        return self

    @abstractmethod
    def half_gradient(self, point: Tensor) -> Tensor:
        """Return half the gradient of f at a relaxed mask (rows, cols), computed from scratch."""

    @property
    def shape(self) -> Shape:
        """(rows, cols)."""
        rows, cols = self.diagonal.shape
        return int(rows), int(cols)


class Working(Quadratic):
    """The normalised copy of a problem that solvers compute with, in their own dtype; Q itself is never formed."""

    @abstractmethod
    def matrix_of_products(self) -> Tensor:
        """Return what ``image`` multiplies by, (cols, cols)."""

    def lower(self, precision: str) -> Self:
        """Return a copy whose ``image`` alone computes in a lower precision; half gradients do not."""
        part = copy(self)
        part.lowered = None if precision == "full" else Lowered.of(self.matrix_of_products(), precision)
        return part

    def full(self) -> Self:
        """Return the copy whose every product is in the dtype of its tensors."""
        return self if self.lowered is None else self.lower("full")

    def multiplied(self, left: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``left`` (rows, cols) times the matrix of products."""
        return (
            torch.mm(left, self.matrix_of_products(), out=out) if self.lowered is None else self.lowered.product(left)
        )

    @abstractmethod
    def row_value(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return f at ``point`` per row (rows,) from the half gradient of f (θ = 0) there, without a product."""

    @abstractmethod
    def summed(self, mask: Tensor) -> Tensor:
        """Return which entries of a mask (R, cols) the sums of a half gradient go over; the others add exact zeros."""

    def constant_size(self) -> Tensor | float:
        """Return what a half gradient adds to these sums, in magnitude: (rows, cols), or a number for all."""
        return 0.0

    @abstractmethod
    def select(self, index: Tensor) -> Self:
        """Return the working problem of the rows in ``index`` (rows that converged leave the batch)."""

    @abstractmethod
    def coupling(self, rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return entries of Q: for each of ``rows`` (R,) its entries at columns ``left`` (R, K) x ``right`` (R, L)."""

    @abstractmethod
    def coupling_with(self, rows: Tensor, partner: Tensor) -> Tensor:
        """Return, for each of ``rows`` (R,) and every column, the entry of Q at its ``partner`` (cols,): (R, cols)."""

    @abstractmethod
    def coupling_sum(self, rows: Tensor, columns: Tensor, factors: Tensor) -> Tensor:
        """Return Σ_b factors_b Q[columns_b] for each of ``rows`` (R,).

        Args:
            rows: (R,) indices.
            columns: (R, B) lines of Q.
            factors: (R, B).

        Returns:
            (R, cols).
        """

    @abstractmethod
    def group_coupling(self, group: int) -> Tensor:
        """Return Q inside groups of consecutive columns: (rows, cols / group, group, group)."""

    @property
    @abstractmethod
    def neighbours(self) -> Neighbours:
        """The most correlated columns: |Q_ij| ≤ ρ sqrt(Q_ii Q_jj) for every row, with the ρ that it gives."""


class Problem(ABC):
    """Minimise a quadratic over the masks of a polytope.

    ``objective`` and everything else that is reported is computed in float64; ``working`` hands solvers a normalised
    copy in a faster dtype.
    """

    polytope: Polytope
    prepared: Gram  # what every row's Q is made of

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """(rows, cols) of a mask."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the problem's tensors live."""

    @property
    @abstractmethod
    def reference(self) -> float:
        """The objective that relative errors are divided by, float64."""

    @abstractmethod
    def half_gradient(self, point: Tensor) -> Tensor:
        """Return half the gradient at a mask or relaxed mask, (rows, cols) float64."""

    @abstractmethod
    def row_value(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return the objective per row, (rows,) float64, from the half gradient at ``point``."""

    @property
    @abstractmethod
    def proof(self) -> PsdProof:
        """What is proven of the curvature: Q + shift · Diag(q) is positive semidefinite for every row."""

    @property
    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal q of every row's Q, (rows, cols) float64."""

    @abstractmethod
    def rounding(self, point: Tensor) -> Tensor:
        """Bound the rounding error of the value and of a tangent at ``point`` over all masks: (rows,) float64."""

    def terms(self) -> int:
        """Return how many terms the longest sum of a coupled block adds up, for bounds on rounding."""
        rows, cols = self.shape
        return cols + (rows if self.polytope.rows_per_block(self.shape) > 1 else 0)

    @property
    def nonnegative(self) -> bool:
        """Whether the objective is at least 0 wherever Q is positive semidefinite."""
        return False

    def flattening(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return by how much to scale z = 1 − m of each coupled block for a tangent that bounds better: (blocks,).

        Other than 1 only where the half gradient is linear in z, so that it scales along.

        Args:
            point: (rows, cols) float64.
            half_gradient: (rows, cols) float64, at ``point``.
        """
        return point.new_ones(self.polytope.block_count(self.shape))

    @abstractmethod
    def row_quadratic(self, row: int) -> tuple[Tensor, Tensor]:
        """Return one row's objective up to a constant as mᵀ Q m + linear·m: (cols, cols) and (cols,) float64."""

    @abstractmethod
    def working(self, dtype: torch.dtype = torch.float32) -> Working:
        """Return the normalised copy that solvers compute with."""

    @abstractmethod
    def rows(self, index: slice | Tensor) -> Self:
        """Return the problem of a run of whole coupled blocks, sharing what rows share."""

    @abstractmethod
    def over(self, polytope: Polytope) -> Self:
        """Return the same objective over another polytope, for relaxations and restrictions inside a solver."""

    @abstractmethod
    def score(self, name: str, power: float = 0.5, rows: slice = slice(None)) -> Tensor:
        """Return a saliency by name, of all or some rows, float64: what warm starts and one-shot solvers round."""

    def round_parts(self, values: Callable[[slice], Tensor], memory_bytes: int) -> Tensor:
        """Round values to a feasible mask, some coupled blocks at a time.

        Args:
            values: gives the values of some rows, to be kept where large.
            memory_bytes: bound on temporaries.

        Returns:
            (rows, cols) bool.
        """
        mask = torch.empty(self.shape, dtype=torch.bool, device=self.device)
        for part, piece in self.split(_JUDGE_MATRICES, memory_bytes):
            mask[part] = piece.polytope.round(values(part))
        return mask

    def feasible(self, mask: Tensor, memory_bytes: int = _JUDGE_BYTES) -> bool:
        """Tell whether a mask (rows, cols) lies in the polytope."""
        return all(piece.polytope.contains(mask[part]) for part, piece in self.split(_JUDGE_MATRICES, memory_bytes))

    def block_objective(self, point: Tensor, memory_bytes: int = _JUDGE_BYTES) -> Tensor:
        """Return the objective of each coupled block at a mask or relaxed mask: (blocks,) float64."""
        pieces = [
            problem.polytope.block_sum(problem.row_value(point[part], problem.half_gradient(point[part])))
            for part, problem in self.split(_JUDGE_MATRICES, memory_bytes)
        ]
        return torch.cat(pieces)

    def split(self, matrices: int, budget_bytes: int) -> Iterator[tuple[slice, Self]]:
        """Yield runs of whole coupled blocks, and their problems, of a size that fits a memory budget.

        Args:
            matrices: number of float64 tensors of the problem's shape that the caller holds at once.
            budget_bytes: bound on their size together; at least one coupled block is yielded at a time.
        """
        rows, cols = self.shape
        height = self.polytope.rows_per_block(self.shape)
        if height == rows:
            yield slice(0, rows), self
            return
        for blocks in row_blocks(rows // height, 8 * matrices * cols * height, budget_bytes):
            part = slice(blocks.start * height, blocks.stop * height)
            yield part, self.rows(part)

    def objective(self, point: Tensor, memory_bytes: int = _JUDGE_BYTES) -> float:
        """Return the objective at a mask or relaxed mask, in float64."""
        return float(self.block_objective(point, memory_bytes).sum())

    def gradient(self, point: Tensor) -> Tensor:
        """Return the gradient at a mask or relaxed mask: (rows, cols) float64."""
        return 2 * self.half_gradient(point.to(torch.float64))

    def relative_error(self, point: Tensor) -> float:
        """Return objective / reference: for masks, the share of the layer's output energy that is lost."""
        return self.objective(point) / self.reference if self.reference > 0 else 0.0
