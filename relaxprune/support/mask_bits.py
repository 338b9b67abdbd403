"""Masks as bits: eight entries a byte, little bit order, each row padded to whole bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError

from .json_files import is_kind


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask ``(..., cols)`` into uint8 ``(..., ceil(cols / 8))`` on the CPU, little bit order."""
    packed = np.packbits(mask.detach().cpu().numpy(), axis=-1, bitorder="little")
    return torch.from_numpy(packed)


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unpack uint8 ``(..., ceil(cols / 8))`` into a bool mask of ``shape`` ``(..., cols)`` on the CPU.

    Raises:
        RelaxPruneError: ``packed`` is not what ``pack_mask`` makes of a mask of this shape.
    """
    if not fits(packed, shape):
        raise RelaxPruneError(
            f"a packed mask of {packed.dtype} and shape {tuple(packed.shape)} does not fit a mask of shape {shape}"
        )
    bits = np.unpackbits(packed.cpu().numpy(), axis=-1, count=shape[-1], bitorder="little")
    return torch.from_numpy(bits.astype(np.bool_))


def fits(packed: Tensor, shape: Sequence[Any]) -> bool:
    """Return whether a packed mask fits a mask of ``shape``."""
    if not shape or not all(is_kind(size, int) and size >= 0 for size in shape):
        return False
    return packed.dtype == torch.uint8 and tuple(packed.shape) == (*shape[:-1], -(-shape[-1] // 8))
