"""``macko``: the storage format of MACKO-SpMV for unstructured zeros, float16 values and steps of 4 bits.

As its authors describe it (https://github.com/vlejd/macko_spmv, ``media/README.md``, and the test of its compressor):
the kept values of all rows one after the other, and with each value the number of entries that lie between it and the
one before it in its row (before the first one: from the row's start), at most 15. Where 15 zeros have been passed and
the next entry is a zero too, that zero is kept as a value. Two steps share a byte, the earlier one in its low half;
both arrays are padded with zeros to a multiple of 8 values. The names of the parts, ``c_0`` to ``c_4``, are those that
its script for whole models reads: values, steps, where each row starts (rows + 1, int32), rows, cols.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relaxprune.models.layers import PrunableLayer

from .packed import PackedTarget
from .rounding import half_unit

_GAP = 16  # entries that one step covers at most
_ROWS = 32  # the kernel works through rows in blocks of this many
_ALIGNED = 8  # values that the kernel loads at once


class Macko(PackedTarget):
    """Unstructured zeros for MACKO's matrix-vector kernels."""

    name = "macko"
    summary = "MACKO-SpMV, float16, any zeros, batch 1 on consumer NVIDIA cards; the kernels are its authors'"
    tolerance = 0.02
    explains = "16-bit sums in another order"

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        """Return float16, which is what the kernel multiplies."""
        return torch.float16

    def reason(self, layer: PrunableLayer) -> str:
        """Say why the kernel does not take a weight, or why its form would be larger."""
        weight = layer.matrix()
        rows, cols = weight.shape
        if rows % _ROWS:
            return f"it has {rows} rows, and the kernel reads rows in blocks of {_ROWS}"
        if not bool(torch.isfinite(weight).all()):
            return "it has values that float16 cannot hold"
        entries = int(_stored(weight).sum())
        if 2.5 * entries + 4 * rows >= 2.0 * rows * cols:
            return (
                f"{entries / (rows * cols):.0%} of its entries would be stored, which takes more room than all of them"
            )
        return "" if entries < 2**31 else "it has more values than int32 counts"

    def part_names(self, parameter: str) -> list[str]:
        """Return the names that the format's own script reads."""
        prefix = parameter.removesuffix("weight")
        return [f"{prefix}c_{index}" for index in range(5)]

    def pack(self, weight: Tensor) -> list[Tensor]:
        """Return values, steps, starts of rows, rows and cols."""
        stored = _stored(weight)
        rows, cols = weight.shape
        place = torch.arange(cols).expand(rows, cols)[stored]
        counts = stored.sum(dim=1)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        before = torch.cat([place.new_full((1,), -1), place[:-1]])
        before[starts[:-1][counts > 0]] = -1  # each row counts from its own start
        steps = (place - before - 1).to(torch.uint8)
        missing = -len(place) % _ALIGNED
        values = torch.nn.functional.pad(weight[stored], (0, missing))
        steps = torch.nn.functional.pad(steps, (0, missing)).reshape(-1, 2)
        bytes_ = steps[:, 0] | (steps[:, 1] << 4)
        return [values, bytes_, starts.to(torch.int32), torch.tensor(rows), torch.tensor(cols)]

    def unpack(self, parts: list[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return the dense weight."""
        values, bytes_, starts, rows, cols = parts
        if (int(rows), int(cols)) != shape or len(starts) != shape[0] + 1 or len(values) != 2 * len(bytes_):
            raise ValueError("the parts are of another shape")
        starts = starts.to(torch.int64)
        counts, count = starts.diff(), int(starts[-1])
        steps = torch.stack([bytes_ & 15, bytes_ >> 4], dim=1).reshape(-1)[:count].to(torch.int64)
        row = torch.arange(shape[0]).repeat_interleave(counts)
        reached = torch.nn.functional.pad((steps + 1).cumsum(0), (1, 0))
        dense = torch.zeros(shape, dtype=dtype)
        dense[row, reached[1:] - reached[starts[:-1]][row] - 1] = values[:count].to(dtype)
        return dense

    def rounding(self, weight: Tensor) -> Tensor:
        """Return half a unit of the last place of float16."""
        return half_unit(weight, torch.float16)


def _stored(weight: Tensor) -> Tensor:
    """Return which entries (rows, cols) get a value: those that are not 0, and the last of every 16 zeros in a row."""
    cols = weight.shape[1]
    place = torch.arange(cols).expand_as(weight)
    kept = weight != 0
    last = torch.where(kept, place, -1).cummax(dim=1).values
    before = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)  # the last kept one before each entry
    return kept | ((place - before) % _GAP == 0)
