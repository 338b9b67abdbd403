"""Which columns are most correlated with which: this makes exact exchange searches cheap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .precision import row_blocks

_COUNT = 16
_CHUNK_BYTES = 64 * 2**20
_MARGIN = 1 + 1e-6  # correlations are rounded, and a bound must not be


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The most correlated columns of each column of a positive semidefinite matrix.

    Attributes:
        index: (cols, count) the neighbours of each column, most correlated first.
        rest: (cols,) largest absolute correlation of each column with one that is not a neighbour.
    """

    index: Tensor
    rest: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Neighbours:
        """Find the neighbours in ``gram`` (cols, cols), some rows at a time."""
        cols = gram.shape[0]
        count = max(1, min(_COUNT, cols - 2))
        diagonal = gram.diagonal().to(torch.float64)
        root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        index = torch.zeros(cols, count, dtype=torch.long, device=gram.device)
        rest = torch.zeros_like(root)
        if cols < 2:
            return cls(index, rest)
        for part in row_blocks(cols, 16 * cols, _CHUNK_BYTES):
            band = (gram[part].to(torch.float64) * root).abs_()
            band.diagonal(offset=part.start).fill_(-1.0)  # never its own neighbour
            values, order = band.topk(min(count + 1, cols - 1), dim=1)
            index[part] = order[:, :count]
            if values.shape[1] > count:
                rest[part] = values[:, count] * root[part] * _MARGIN
        return cls(index, rest)
