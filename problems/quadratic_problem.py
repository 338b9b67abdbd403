"""Any convex quadratic over the same polytopes: what keeps the solvers honest about being generic."""

from __future__ import annotations

from copy import copy
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .errors import RelaxPruneError
from .gram import Gram, PsdProof
from .neighbours import Neighbours
from .polytopes import Face, Polytope
from .polytopes.base import Shape
from .precision import UNIT_ROUNDOFF, product64
from .problem import Problem, Working
from .unchanged import Unchanged


class QuadraticProblem(Problem):
    """Minimise Σ_rows (mᵀ Q m + linearᵀ m) over the masks M of a polytope, with one Q for all rows.

    Feature selection, a sparse portfolio with equal weights, or a densest subgraph are of this form. m_i = 1 selects.

    Args:
        quadratic: (n, n), symmetric positive semidefinite up to float noise, as a tensor or a prepared ``Gram``.
        linear: (rows, n), or (n,) for one row.
        polytope: the set of masks of shape (rows, n).
        fixed_kept: (rows, n) bool, entries that every mask selects, or None.
        fixed_pruned: (rows, n) bool, entries that no mask selects, or None.

    Raises:
        RelaxPruneError: sizes, dtypes or values that cannot be right.
    """

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
        if not isinstance(linear, Tensor) or linear.dim() not in (1, 2) or not linear.is_floating_point():
            got = f"{linear.dtype} of shape {tuple(linear.shape)}" if isinstance(linear, Tensor) else repr(linear)
            raise RelaxPruneError(f"linear must be a float tensor of shape (n,) or (rows, n), got {got}")
        if 0 in linear.shape:
            raise RelaxPruneError(f"linear must have at least one row and one column, got {tuple(linear.shape)}")
        if not isinstance(polytope, Polytope):
            raise RelaxPruneError(f"polytope must be a Polytope such as KSparse or NM, got {type(polytope).__name__}")
        self.prepared: Gram = quadratic if isinstance(quadratic, Gram) else Gram(quadratic, "quadratic")
        self.linear: Tensor = linear.detach().reshape(-1, linear.shape[-1])
        if self.prepared.cols != self.linear.shape[1]:
            raise RelaxPruneError(
                f"quadratic is {self.prepared.cols} x {self.prepared.cols}, "
                f"but linear has {self.linear.shape[1]} columns"
            )
        if self.prepared.matrix.device != linear.device:
            raise RelaxPruneError(f"quadratic is on {self.prepared.matrix.device}, but linear is on {linear.device}")
        if not bool(torch.isfinite(linear).all()):
            raise RelaxPruneError("linear holds NaN or Inf")
        if fixed_kept is not None or fixed_pruned is not None:
            polytope = Face(polytope, fixed_kept, fixed_pruned)
        self.polytope: Polytope = polytope
        polytope.validate(self.shape)
        self._unchanged = Unchanged(linear=self.linear, fixed_kept=fixed_kept, fixed_pruned=fixed_pruned)
        _ = self.prepared.proof

    @property
    def shape(self) -> Shape:
        """(rows, n)."""
        rows, cols = self.linear.shape
        return int(rows), int(cols)

    @property
    def device(self) -> torch.device:
        """Where the linear term lives."""
        return self.linear.device

    @property
    def reference(self) -> float:
        """0: there is no natural objective to divide by, so relative errors are reported as 0."""
        return 0.0

    @property
    def proof(self) -> PsdProof:
        """The proof of Q itself."""
        self._unchanged.check()
        return self.prepared.proof

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
        """Return what selecting each entry alone saves, −(Q_jj + linear_j), whatever saliency is asked for."""
        return -(self.diagonal[rows] + self.linear[rows].to(torch.float64))

    def working(self, dtype: torch.dtype = torch.float32) -> WorkingQuadratic:
        """Return the copy with mean diagonal 1."""
        scale = self.prepared.scale
        matrix = (self.prepared.matrix / scale).to(dtype)
        return WorkingQuadratic(matrix, (self.linear.to(torch.float64) / scale).to(dtype), self.polytope, self.prepared)

    def rows(self, index: slice | Tensor) -> Self:
        """Return the problem of a run of whole coupled blocks."""
        return self._unchecked(self.linear[index], self.polytope.rows(index))

    def over(self, polytope: Polytope) -> Self:
        """Return the same objective over another polytope."""
        return self._unchecked(self.linear, polytope)

    def _unchecked(self, linear: Tensor, polytope: Polytope) -> Self:
        """Build a problem from parts that were checked already."""
        part = object.__new__(type(self))
        part.prepared, part.linear, part.polytope = self.prepared, linear, polytope
        part._unchanged = self._unchanged
        return part


class WorkingQuadratic(Working):
    """A ``QuadraticProblem`` in a solver's dtype and of order one."""

    def __init__(self, matrix: Tensor, linear: Tensor, polytope: Polytope, prepared: Gram) -> None:
        """Take the scaled tensors, and Q itself, which knows its neighbours."""
        self.matrix = matrix  # (n, n)
        self.linear = linear  # (rows, n)
        self.polytope = polytope
        self.diagonal = matrix.diagonal().expand(linear.shape)  # (rows, n)
        self.prepared = prepared

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
        return self.prepared.neighbours
