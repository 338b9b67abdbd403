"""Cuts of rank one over lifted masks: (s·x)² ≥ 1 for a signed sum of three entries of x."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Cuts:
    """Sums of three signed entries, for every row of a batch.

    Attributes:
        index: (batch, m, 3) int64, entries of x.
        sign: (batch, m, 3) float64, ±1.
    """

    index: Tensor
    sign: Tensor

    @classmethod
    def none(cls, batch: int, device: torch.device) -> Cuts:
        """Return no cuts."""
        index = torch.zeros(batch, 0, 3, dtype=torch.int64, device=device)
        return cls(index, index.to(torch.float64))

    @property
    def count(self) -> int:
        """Number of cuts of a row."""
        return int(self.index.shape[1])

    def lines(self, matrix: Tensor) -> Tensor:
        """Return s_kᵀ M: (batch, m, N) from (batch, N, N)."""
        batch, n = matrix.shape[:2]
        flat = matrix.reshape(batch * n, -1)
        start = (torch.arange(batch, device=matrix.device) * n).view(-1, 1)
        total = matrix.new_zeros(batch, self.count, matrix.shape[2])
        for place in range(self.index.shape[2]):
            lines = flat[(self.index[:, :, place] + start).reshape(-1)].view_as(total)
            total += lines.mul_(self.sign[:, :, place, None])
        return total

    def pairs(self, lines: Tensor) -> Tensor:
        """Return s_kᵀ M s_l: (batch, m, m) from ``lines(M)`` of a symmetric M."""
        return self.lines(lines.mT.contiguous())

    def values(self, matrix: Tensor) -> Tensor:
        """Return s_kᵀ M s_k: (batch, m)."""
        batch = torch.arange(len(matrix), device=matrix.device).view(-1, 1, 1, 1)
        entries = matrix[batch, self.index.unsqueeze(3), self.index.unsqueeze(2)]
        return (entries * self.sign.unsqueeze(3) * self.sign.unsqueeze(2)).sum(dim=(2, 3))

    def weighted(self, multiplier: Tensor, n: int) -> Tensor:
        """Return Σ_k λ_k s_k s_kᵀ: (batch, n, n)."""
        batch = len(multiplier)
        total = multiplier.new_zeros(batch, n * n)
        places = (self.index.unsqueeze(3) * n + self.index.unsqueeze(2)).reshape(batch, -1)
        products = self.sign.unsqueeze(3) * self.sign.unsqueeze(2) * multiplier[:, :, None, None]
        return total.scatter_add_(1, places, products.reshape(batch, -1)).view(batch, n, n)

    def chosen(self, order: Tensor) -> Cuts:
        """Return the cuts at ``order`` (batch, m')."""
        index = order.unsqueeze(2).expand(-1, -1, self.index.shape[2])
        return Cuts(self.index.gather(1, index), self.sign.gather(1, index))

    def joined(self, other: Cuts) -> Cuts:
        """Return these cuts and others."""
        return Cuts(torch.cat([self.index, other.index], 1), torch.cat([self.sign, other.sign], 1))
