"""Judging in float64 without a float64 copy of the Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT_ROUNDOFF = 2.0**-53
_CHUNK_BYTES = 64 * 2**20


def product64(left: Tensor, gram: Tensor) -> Tensor:
    """Multiply ``left`` (rows, cols) by ``gram`` (cols, cols) in float64, some columns at a time.

    So a 14336-column layer needs no float64 copy of its Gram.
    """
    left = left.to(torch.float64)
    if gram.dtype == torch.float64:
        return left @ gram
    out = left.new_empty(left.shape)
    width = max(1, _CHUNK_BYTES // (8 * max(1, gram.shape[0])))
    for start in range(0, gram.shape[1], width):
        band = slice(start, start + width)
        out[:, band] = left @ gram[:, band].to(torch.float64)
    return out


def row_blocks(rows: int, bytes_per_row: int, budget_bytes: int) -> list[slice]:
    """Split ``rows`` into slices of about ``budget_bytes`` each, at least one row a slice, of even size."""
    fit = max(1, budget_bytes // max(1, bytes_per_row))
    count = -(-rows // fit)
    size = -(-rows // count) if count else 1
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
