"""The rows' own low-rank terms: BᵀB for each row, in a solver's dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """What F adds to every row's Q: BᵀB with B = F Diag(w).

    Attributes:
        factors: (rows, cols, rank), the columns of B one after the other, so that a few of them are quickly read.
        diagonal: (rows, cols), the diagonals of BᵀB.
    """

    factors: Tensor
    diagonal: Tensor

    @classmethod
    def of(cls, fisher: Tensor, weight: Tensor, dtype: torch.dtype) -> LowRank:
        """Multiply F (rows, rank, cols) by w (rows, cols) float64, in float64, and lower it to ``dtype``."""
        factors = (fisher.to(torch.float64) * weight.unsqueeze(1)).to(dtype).transpose(1, 2).contiguous()
        return cls(factors, factors.square().sum(dim=2))

    def select(self, index: Tensor) -> LowRank:
        """Return the terms of some rows."""
        return LowRank(self.factors[index], self.diagonal[index])

    def image(self, direction: Tensor) -> Tensor:
        """Return BᵀB applied to a direction: (rows, cols)."""
        return _spread(self.factors, torch.bmm(direction.unsqueeze(1), self.factors))

    def coupling(self, rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return entries of BᵀB: for ``rows`` (R,) those at columns ``left`` (R, K) x ``right`` (R, L)."""
        return torch.bmm(self._at(rows, left), self._at(rows, right).transpose(1, 2))

    def coupling_with(self, rows: Tensor, partner: Tensor) -> Tensor:
        """Return, for each of ``rows`` and every column, the entry of BᵀB at its ``partner`` (cols,): (R, cols)."""
        own = self._of(rows)
        entries: Tensor = torch.linalg.vecdot(own, own[:, partner])
        return entries

    def coupling_sum(self, rows: Tensor, columns: Tensor, factors: Tensor) -> Tensor:
        """Return Σ_b factors_b (BᵀB)[columns_b] for ``rows`` (R,), from (R, B) each: (R, cols)."""
        return _spread(self._of(rows), torch.bmm(factors.unsqueeze(1), self._at(rows, columns)))

    def group_coupling(self, group: int) -> Tensor:
        """Return BᵀB inside groups of consecutive columns: (rows, groups, group, group)."""
        rows, cols, rank = self.factors.shape
        parts = self.factors.view(rows, cols // group, group, rank)
        return parts @ parts.transpose(2, 3)

    def _of(self, rows: Tensor) -> Tensor:
        """Return the factors of ``rows`` (R,), without a copy of all of them if those are all in order."""
        everything = len(rows) == len(self.factors) and bool((rows[1:] > rows[:-1]).all())
        return self.factors if everything else self.factors[rows]

    def _at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return B's columns (R, K) of ``rows`` (R,): (R, K, rank)."""
        return self.factors[rows.unsqueeze(1), columns]


def _spread(factors: Tensor, inner: Tensor) -> Tensor:
    """Return BᵀB d from factors (R, cols, rank) and B d (R, 1, rank): (R, cols)."""
    return torch.bmm(factors, inner.transpose(1, 2)).squeeze(2)
