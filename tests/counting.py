"""Counts the matrix products that a solve really does, and breaks them on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from relaxprune.problems.mask_problem import WorkingMask


class Products:
    """Products done so far, in whole matrices of ``rows`` rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.done = 0.0
        self.calls = 0


@contextmanager
def counted(rows: int) -> Iterator[Products]:
    """Count every product with the Gram: ``half_gradient`` goes through ``image``."""
    products = Products(rows)
    original = WorkingMask.image

    def image(self: WorkingMask, direction: Tensor, out: Tensor | None = None) -> Tensor:
        products.done += direction.shape[0] / rows
        products.calls += 1
        return original(self, direction, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkingMask, "image", image)
        yield products


@contextmanager
def broken_at(call: int, value: float, row: int = 0) -> Iterator[None]:
    """Let one float32 product return ``value`` in one row: what an overflow on a device does."""
    original = WorkingMask.image
    calls = 0

    def image(self: WorkingMask, direction: Tensor, out: Tensor | None = None) -> Tensor:
        nonlocal calls
        result = original(self, direction, out)
        if self.weight.dtype == torch.float32:
            calls += 1
            if calls == call:
                result[row] = value
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkingMask, "image", image)
        yield
