"""Which weights torch's semi-structured sparsity would accept, without a device that supports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from relaxprune.models.checkpoint import checked_weights, weight_file
from relaxprune.support.container import open_tensors

BACKENDS = {"CUTLASS": SparseSemiStructuredTensorCUTLASS, "cuSPARSELt": SparseSemiStructuredTensorCUSPARSELT}


@dataclass(frozen=True)
class Verdict:
    """Whether the backends accept one pruned weight.

    Attributes:
        name: of the parameter.
        dtype, shape: as the checkpoint stores it.
        accepted: names of the backends that would accept it.
        reason: why one does not, "" if all do.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    accepted: tuple[str, ...]
    reason: str


def check_folder(folder: Path) -> list[Verdict]:
    """Check every pruned matrix of a checkpoint by the rules of ``torch.sparse.to_sparse_semi_structured``.

    Two dimensions; at most two of every four consecutive entries of a row are not 0 (one of two in float32); a dtype
    and multiples of rows and columns from the backend's table of constraints. The device is not checked.

    Args:
        folder: a model's folder. Tensors of which at least a tenth is 0 count as pruned: a checkpoint may name the
            matrices of experts differently from the model and the masks.

    Raises:
        RelaxPruneError: there are no weights in safetensors, or they are damaged.
    """
    found: list[Verdict] = []
    for file in checked_weights(folder):
        with open_tensors(folder / file, weight_file(folder / file)) as tensors:
            for name in tensors:
                stored = tensors.tensor(name)
                zeros = stored.numel() - int(_kept(stored).sum())
                if stored.dim() >= 2 and stored.numel() and zeros >= stored.numel() / 10:
                    found.append(judge(name, stored))
    return found


def judge(name: str, stored: Tensor) -> Verdict:
    """Return the verdict on one weight, as it is stored."""
    shape = tuple(stored.shape)
    dtype = str(stored.dtype).removeprefix("torch.")
    if len(shape) != 2:
        return Verdict(name, dtype, shape, (), f"it has {len(shape)} dimensions, not 2")
    accepted, reasons = [], []
    for backend, kind in BACKENDS.items():
        rule = kind._DTYPE_SHAPE_CONSTRAINTS.get(stored.dtype)
        if rule is None:
            reasons.append(f"{backend} takes no {dtype}")
        elif any(size < least or size % least for size, least in zip(shape, rule[:2], strict=True)):
            reasons.append(f"{backend} wants multiples of {rule[0]} x {rule[1]}")
        else:
            accepted.append(backend)
    keep, group = (1, 2) if stored.dtype == torch.float32 else (2, 4)
    if shape[1] % group or int(_kept(stored).reshape(shape[0], -1, group).sum(dim=2).max()) > keep:
        return Verdict(name, dtype, shape, (), f"its rows are not {keep}:{group}, which {dtype} wants")
    return Verdict(name, dtype, shape, tuple(accepted), "; ".join(reasons))


def _kept(stored: Tensor) -> Tensor:
    """Return where a tensor is not 0; torch cannot compare every one-byte dtype."""
    return (stored.float() if stored.is_floating_point() and stored.element_size() == 1 else stored) != 0
