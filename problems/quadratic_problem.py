"""Any convex quadratic over the same polytopes; it keeps the solvers honest about being generic."""

from __future__ import annotations

from copy import copy
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .checks import check_floats
from .gram import Gram
from .neighbours import Neighbours
from .polytopes import Polytope
from .precision import UNIT_ROUNDOFF, product64
from .problem import Problem
from .working import Working


class QuadraticProblem(Problem):
    """Minimise Σ_rows (mᵀ Q m + linearᵀ m) over the masks M of a polytope, with one Q for all rows.

    Feature selection, a sparse portfolio with equal weights, or a densest subgraph have this form. m_i = 1 selects.

    Args:
        quadratic: (n, n), symmetric positive semidefinite up to float noise, as a tensor or a prepared ``Gram``.
        linear: (rows, n), or (n,) for one row.
        polytope: the set of masks of shape (rows, n).
        fixed_kept: (rows, n) bool, entries that every mask selects, or None.
        fixed_pruned: (rows, n) bool, entries that no mask selects, or None.

    Raises:
        RelaxPruneError: sizes, dtypes or values that cannot be right.
    """

    names: ClassVar[tuple[str, str]] = ("linear", "quadratic")
    saliencies: ClassVar[tuple[str, ...]] = ("savings",)
    default_start: ClassVar[str] = "savings"

    def __init__(
        self,
        quadratic: Tensor | Gram,
        linear: Tensor,
        polytope: Polytope,
        *,
        fixed_kept: Tensor | None = None,
        fixed_pruned: Tensor | None = None,
    ) -> None:
        """Check the input; see the class."""
        check_floats("linear", linear, (1, 2), "(n,) or (rows, n)")
        matrix = quadratic if isinstance(quadratic, Gram) else Gram(quadratic, "quadratic")
        super().__init__(linear.reshape(-1, linear.shape[-1]), matrix, polytope, fixed_kept, fixed_pruned)

    @property
    def linear(self) -> Tensor:
        """The linear term, (rows, n)."""
        return self.term

    @property
    def reference(self) -> None:
        """None: there is no natural objective to divide by."""
        return None

    @property
    def diagonal(self) -> Tensor:
        """Diag(Q) in every row, (rows, n) float64."""
        return self.prepared.diagonal.to(torch.float64).expand(self.shape)

    def half_gradient(self, point: Tensor) -> Tensor:
        """Return Q m + linear / 2 in float64: (rows, n)."""
        return product64(point, self.prepared.matrix) + self.linear.to(torch.float64) / 2

    def row_value(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return mᵀ Q m + linearᵀ m per row: (rows,) float64."""
        return (point.to(torch.float64) * (half_gradient + self.linear.to(torch.float64) / 2)).sum(dim=1)

    def row_quadratic(self, row: int) -> tuple[Tensor, Tensor]:
        """Return Q and the row's linear term."""
        return self.prepared.matrix.to(torch.float64), self.linear[row].to(torch.float64)

    def rounding(self, point: Tensor) -> Tensor:
        """Bound rounding by |Q_ij| ≤ (1 + τ) sqrt(Q_ii Q_jj) and by the linear term: (rows,) float64."""
        magnitude = self.diagonal.sqrt()
        inner = (magnitude * point.abs()).sum(dim=1)
        linear = self.linear.to(torch.float64).abs()
        total = inner * (inner + magnitude.sum(dim=1)) + (linear * (1 + point.abs())).sum(dim=1)
        return 8 * self.terms() * UNIT_ROUNDOFF * total

    def score(self, name: str, power: float = 0.5, rows: slice = slice(None)) -> Tensor:
        """Return ``"savings"``, what selecting each entry alone saves: −(Q_jj + linear_j)."""
        self.check_saliency(name)
        return -(self.diagonal[rows] + self.linear[rows].to(torch.float64))

    def working(self, dtype: torch.dtype = torch.float32) -> WorkingQuadratic:
        """Return the copy with mean diagonal 1."""
        scale = self.prepared.scale
        matrix = (self.prepared.matrix / scale).to(dtype)
        return WorkingQuadratic(matrix, (self.linear.to(torch.float64) / scale).to(dtype), self.polytope, self.prepared)


class WorkingQuadratic(Working):
    """A ``QuadraticProblem`` in a solver's dtype and of order one."""

    def __init__(self, matrix: Tensor, linear: Tensor, polytope: Polytope, source: Gram) -> None:
        """Take the scaled tensors, and Q itself, which knows its neighbours."""
        self.matrix = matrix  # (n, n)
        self.linear = linear  # (rows, n)
        self.polytope = polytope
        self.diagonal = matrix.diagonal().expand(linear.shape)  # (rows, n)
        self.source: Gram = source

    def image(self, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """Return Q d."""
        return self.multiplied(direction, out)

    def matrix_of_products(self) -> Tensor:
        """Return Q."""
        return self.matrix

    def half_gradient(self, point: Tensor) -> Tensor:
        """Return Q m + linear / 2."""
        return self.full().image(point).add_(self.linear, alpha=0.5)

    def row_value(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return mᵀ Q m + linearᵀ m per row: (rows,)."""
        value: Tensor = torch.linalg.vecdot(point, half_gradient) + 0.5 * torch.linalg.vecdot(point, self.linear)
        return value

    def summed(self, mask: Tensor) -> Tensor:
        """Return the selected entries."""
        return mask

    def constant_size(self) -> Tensor:
        """Return |linear| / 2."""
        return self.linear.abs() / 2

    def select(self, index: Tensor) -> Self:
        """Return the rows in ``index``."""
        part = copy(self)
        part.linear, part.polytope = self.linear[index], self.polytope.rows(index)
        part.diagonal = self.matrix.diagonal().expand(part.linear.shape)
        return part

    def coupling(self, rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return Q_ij: (R, K, L)."""
        return self.matrix[left.unsqueeze(2), right.unsqueeze(1)]

    def coupling_with(self, rows: Tensor, partner: Tensor) -> Tensor:
        """Return Q_jp with p the partner of j, the same for every row: (R, n)."""
        return self.matrix.gather(1, partner.unsqueeze(1)).squeeze(1).repeat(len(rows), 1)

    def coupling_sum(self, rows: Tensor, columns: Tensor, factors: Tensor) -> Tensor:
        """Return Σ factors Q_c: (R, n)."""
        return embedding_bag(columns, self.matrix, per_sample_weights=factors, mode="sum")

    def group_coupling(self, group: int) -> Tensor:
        """Return the diagonal blocks of Q, the same for every row: (rows, groups, group, group)."""
        groups = self.matrix.shape[0] // group
        blocks = self.matrix.view(groups, group, groups, group).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return blocks.expand(self.linear.shape[0], -1, -1, -1)

    @property
    def neighbours(self) -> Neighbours:
        """The most correlated entries of each entry."""
        return self.source.neighbours
