"""What solvers compute with for a layer: its mask problem, scaled, in their own dtype."""

from __future__ import annotations

from copy import copy
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .gram import Gram
from .low_rank import LowRank
from .neighbours import Neighbours
from .objective import Objective
from .polytopes import Polytope
from .working import Working


class WorkingMask(Working):
    """A ``MaskProblem`` scaled so that every coupled block is of order one.

    The Gram keeps its memory if its dtype already fits: its scale is folded into the weight, since
    Diag(w) G Diag(w) is all that enters. ``own`` is what a row has beside the shared matrix, ``linear`` l. The diagonal
    of ``outputs`` is folded into the weight as well.
    """

    own: LowRank | None = None
    outputs: Tensor | None = None  # (rows, rows), what couples rows, with unit diagonal
    linear: Tensor | None = None  # (rows, cols)

    def __init__(
        self, weight: Tensor, gram: Tensor, diagonal: Tensor, polytope: Polytope, source: Gram | None = None
    ) -> None:
        """Take the scaled tensors, and the Gram that knows its neighbours; use ``of``."""
        self.weight = weight  # (rows, cols)
        self.gram = gram  # (cols, cols)
        self.diagonal = diagonal  # (rows, cols)
        self.shared = diagonal  # (rows, cols), the part of it that is of the Gram
        self.polytope = polytope
        self.source = source

    @classmethod
    def of(cls, weight: Tensor, objective: Objective, polytope: Polytope, dtype: torch.dtype) -> WorkingMask:
        """Scale a problem: divide each coupled block by its root mean square of |w| sqrt(H_jj), H the rows' matrix."""
        gram = objective.gram
        wide = weight.to(torch.float64)
        energy = polytope.block_sum((wide.square() * objective.diagonal()).mean(dim=1))
        scale = polytope.to_rows(torch.where(energy > 0, energy, 1.0).rsqrt(), wide.shape[0])
        scaled = (wide * (scale * gram.unit(dtype) * objective.row_scale())).to(dtype)
        matrix = gram.in_dtype(dtype)
        made = cls(scaled, matrix, scaled.square() * matrix.diagonal(), polytope, gram)
        if objective.linear is not None:
            made.linear = (wide * objective.linear.to(torch.float64) * scale.square()).to(dtype)
        if objective.fisher is not None:
            made.own = LowRank.of(objective.fisher, wide * scale, dtype)
            made.shared, made.diagonal = made.diagonal, made.diagonal + made.own.diagonal
        if objective.outputs is not None:
            made.outputs, made.couples = objective.outputs.full_correlation().to(dtype), True
        return made

    def image(self, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """Return W ∘ ((W ∘ direction) G), and what the rows' own terms add."""
        image = self.multiplied(self.weight * direction, out)
        image = (image if self.outputs is None else self.outputs @ image).mul_(self.weight)
        return image if self.own is None else image.add_(self.own.image(direction))

    def matrix_of_products(self) -> Tensor:
        """Return the Gram."""
        return self.gram

    def half_gradient(self, point: Tensor) -> Tensor:
        """Return −Q z + l / 2, z = 1 − m."""
        half = self.full().image(point - 1)
        return half if self.linear is None else half.add_(self.linear, alpha=0.5)

    def row_value(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return zᵀ Q z − l·z per row: (rows,)."""
        value: Tensor = torch.linalg.vecdot(point - 1, half_gradient)
        return value if self.linear is None else value + 0.5 * torch.linalg.vecdot(point - 1, self.linear)

    def constant_size(self) -> Tensor | float:
        """Return |l| / 2."""
        return 0.0 if self.linear is None else self.linear.abs() / 2

    def summed(self, mask: Tensor) -> Tensor:
        """Return the pruned entries."""
        return ~mask

    def select(self, index: Tensor) -> Self:
        """Return the rows in ``index``."""
        part = copy(self)
        part.weight, part.diagonal, part.polytope = self.weight[index], self.diagonal[index], self.polytope.rows(index)
        part.shared = part.diagonal if self.own is None else self.shared[index]
        part.own = None if self.own is None else self.own.select(index)
        part.linear = None if self.linear is None else self.linear[index]
        return part

    def coupling(self, rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return w_i G_ij w_j: (R, K, L)."""
        line = rows.unsqueeze(1)
        entries = self.gram[left.unsqueeze(2), right.unsqueeze(1)]
        entries.mul_(self.weight[line, left].unsqueeze(2)).mul_(self.weight[line, right].unsqueeze(1))
        return entries if self.own is None else entries.add_(self.own.coupling(rows, left, right))

    def coupling_with(self, rows: Tensor, partner: Tensor) -> Tensor:
        """Return w_j G_jp w_p with p the partner of j: (R, cols)."""
        weight = self.weight[rows]
        line = self.gram.gather(1, partner.unsqueeze(1)).squeeze(1)
        entries = weight[:, partner].mul_(weight).mul_(line)
        return entries if self.own is None else entries.add_(self.own.coupling_with(rows, partner))

    def coupling_sum(self, rows: Tensor, columns: Tensor, factors: Tensor) -> Tensor:
        """Return w ∘ Σ factors w_c G_c: (R, cols)."""
        weight = self.weight[rows]
        total = embedding_bag(columns, self.gram, per_sample_weights=weight.gather(1, columns) * factors, mode="sum")
        total.mul_(weight)
        return total if self.own is None else total.add_(self.own.coupling_sum(rows, columns, factors))

    def spread(self, rows: Tensor, columns: Tensor, factors: Tensor) -> Tensor:
        """Return w ∘ S Σ factors w_c G_c, and what the rows' own terms add in ``rows``."""
        assert self.outputs is not None
        inner = embedding_bag(
            columns, self.gram, per_sample_weights=self.weight[rows].gather(1, columns) * factors, mode="sum"
        )
        image = (self.outputs[:, rows] @ inner).mul_(self.weight)
        return image if self.own is None else image.index_add_(0, rows, self.own.coupling_sum(rows, columns, factors))

    def mutual(self, rows: Tensor, change: Tensor) -> Tensor:
        """Return S ∘ (D G Dᵀ), D = w ∘ d; the rows' own terms join no two rows."""
        assert self.outputs is not None
        moved = self.weight[rows] * change
        return self.outputs[rows][:, rows] * (moved @ self.gram @ moved.T)

    def group_coupling(self, group: int) -> Tensor:
        """Return the diagonal blocks of Diag(w) G Diag(w): (rows, groups, group, group)."""
        groups = self.gram.shape[0] // group
        blocks = self.gram.view(groups, group, groups, group).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight = self.weight.view(-1, groups, group)
        inside = weight.unsqueeze(3) * blocks * weight.unsqueeze(2)
        return inside if self.own is None else inside.add_(self.own.group_coupling(group))

    @property
    def neighbours(self) -> Neighbours:
        """The most correlated columns of each column, from the Gram alone."""
        return Neighbours.of(self.gram) if self.source is None else self.source.neighbours

    def slack(self, rows: Tensor) -> Tensor:
        """Add what 2 |b_i·b_j| ≤ b_i² + b_j² allows for the rows' own terms."""
        if self.own is None:
            return super().slack(rows)
        return self.neighbours.rest * self.shared[rows] + self.own.diagonal[rows]

    def tightened(self, tightening: Tensor) -> Tensor:
        """Return the share of the whole diagonal, since the tightening is of the Gram's part."""
        if self.own is None:
            return super().tightened(tightening)
        return torch.where(self.diagonal > 0, tightening * self.shared / self.diagonal, 0.0)
