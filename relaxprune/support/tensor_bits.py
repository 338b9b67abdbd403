"""The bits of a tensor, for checksums, files and exact comparisons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return a dense tensor's bytes, row-major, without a copy if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def as_integers(tensor: Tensor) -> Tensor:
    """View a tensor's entries as integers of the same size, on the CPU: only +0.0 is 0, and NaN equals itself.

    Args:
        tensor: any dense tensor whose entries take at most 8 bytes.

    Returns:
        The same shape, sharing memory with ``tensor`` if that is contiguous and on the CPU. A bool tensor stays bool.
    """
    dense = tensor.detach().cpu().contiguous()
    return dense if dense.dtype == torch.bool else dense.view(_INTEGERS[dense.element_size()])


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Say whether two tensors have the same dtype, shape and bits (so NaN equals NaN, and 0.0 differs from -0.0)."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(as_integers(first), as_integers(second))


def checksum(tensors: Iterable[tuple[str, Tensor]], head: bytes = b"") -> str:
    """Return the SHA-256 over every tensor's name, dtype, shape and bytes, in hexadecimal.

    Args:
        tensors: names and dense tensors, in a fixed order; read one by one.
        head: hashed before them.
    """
    digest = hashlib.sha256(head)
    for name, tensor in tensors:
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()
