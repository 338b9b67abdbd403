"""What a solver computes with: a polytope and one independent quadratic per row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from typing import Self

import torch
from torch import Tensor

from .gram import Gram
from .lowered import Lowered
from .neighbours import Neighbours
from .polytopes import Polytope
from .polytopes.base import Shape


class Quadratic(ABC):
    """A quadratic over a polytope, one per row: what a step of Frank-Wolfe needs.

    Written for a relaxed mask m as f(m) = quadratic, whose half gradient is affine in m with the linear part Q (one
    symmetric matrix per row). For any θ the annealed objective f_θ(m) = f(m) + θ Σ q m (1 − m), with q = diag(Q),
    equals f on every mask and has the quadratic part Q − θ Diag(q).
    """

    polytope: Polytope
    couples: bool = False  # whether rows have entries of Q in common; ``coupling`` then is that inside rows
    diagonal: Tensor  # (rows, cols): q, the diagonal of every row's Q
    source: Gram | None  # what every row's Q is made from, unscaled; None if a solver made the problem up
    lowered: Lowered | None = None  # what ``image`` multiplies by instead of the matrix; see ``Working.lower``

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
        """Return a copy in which ``image``, but not ``half_gradient``, computes in a lower precision."""
        part = copy(self)
        part.lowered = None if precision == "full" else Lowered.of(self.matrix_of_products(), precision)
        return part

    def full(self) -> Self:
        """Return the copy in which every product is in the dtype of its tensors."""
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
        """Return the entries of a mask (R, cols) that the sums of a half gradient run over; others add exact zeros."""

    def constant_size(self) -> Tensor | float:
        """Return the magnitude of what a half gradient adds to these sums: (rows, cols), or one number for all."""
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

    def spread(self, rows: Tensor, columns: Tensor, factors: Tensor) -> Tensor:
        """Return the image of entries of ``rows`` (R,) in all rows, where rows are coupled: (rows, cols)."""
        raise NotImplementedError

    def mutual(self, rows: Tensor, change: Tensor) -> Tensor:
        """Return d_i Q d_k for the changes d (R, cols) of each two of ``rows`` (R,), where rows are coupled: (R, R)."""
        raise NotImplementedError

    @abstractmethod
    def group_coupling(self, group: int) -> Tensor:
        """Return Q inside groups of consecutive columns: (rows, cols / group, group, group)."""

    @property
    @abstractmethod
    def neighbours(self) -> Neighbours:
        """The most correlated columns: |Q_ij| ≤ ρ sqrt(Q_ii Q_jj) for every row, with the ρ that they give."""

    def slack(self, rows: Tensor) -> Tensor:
        """Return s with 2 |Q_ij| ≤ s_i + s_j, i and j no neighbours, for each of ``rows`` (R,): (R, cols)."""
        return self.neighbours.rest * self.diagonal[rows]

    def tightened(self, tightening: Tensor) -> Tensor:
        """Return the share of ``diagonal`` that a tightening (cols,) is: (1, cols), or (rows, cols) if rows differ."""
        return tightening.unsqueeze(0)
