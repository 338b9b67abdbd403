"""``semi-structured``: the form in which torch's 2:4 kernels (NVIDIA, Ampere and later) hold a weight.

Each weight is stored as ``NAME.packed`` (rows, cols / 2), the two kept values of every four in order, and ``NAME.meta``
(rows, cols / 16) int16, their places in the layout of CUTLASS, as ``torch.sparse.SparseSemiStructuredTensorCUTLASS``
has them: 9 bits of 16 in bfloat16 and float16. Where a device has other kernels, torch makes their layout on loading.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass as from_dense,
)
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_to_dense_cutlass as to_dense,
)

from relaxprune.masks.semi_structured import judge
from relaxprune.models.layers import PrunableLayer

from .packed import PackedTarget
from .rounding import half_unit

_CUTLASS_GENERATION = 8  # of NVIDIA's: torch's CUTLASS kernels run on this one only, cuSPARSELt's on later ones too


class SemiStructured(PackedTarget):
    """2:4 for torch's own kernels, in bfloat16, or float16 if the run is."""

    name = "semi-structured"
    summary = "torch's 2:4 kernels, bfloat16 or float16, NVIDIA Ampere and later"
    tolerance = 0.1
    explains = "16-bit sums in another order"

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        """Return bfloat16, or float16 for a float16 model."""
        return torch.float16 if stored == torch.float16 else torch.bfloat16

    def reason(self, layer: PrunableLayer) -> str:
        """Say why torch's kernels do not take a weight."""
        verdict = judge(layer.parameter, layer.matrix())
        return "" if "CUTLASS" in verdict.accepted else verdict.reason

    def part_names(self, parameter: str) -> list[str]:
        """Return the names of kept values and of their places."""
        return [f"{parameter}.packed", f"{parameter}.meta"]

    def pack(self, weight: Tensor) -> list[Tensor]:
        """Return kept values (rows, cols / 2) and their places."""
        return list(from_dense(weight.contiguous()))

    def unpack(self, parts: list[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return the dense weight."""
        packed, meta = parts
        dense: Tensor = to_dense(packed, meta)
        return dense.reshape(shape).to(dtype)

    def place(self, module: nn.Module, parts: list[Tensor], device: torch.device) -> str:
        """Give a module torch's tensor for the kernels of its device, made from the dense weight that it has."""
        kind = _kernels(device)
        if kind is None:
            return ""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
            weight = kind.from_dense(module.get_parameter("weight").detach())
        module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        return f"torch semi-structured ({kind.BACKEND})"

    def rounding(self, weight: Tensor) -> Tensor:
        """Return half a unit of the last place of the 16-bit dtype."""
        return half_unit(weight, self.dtype(weight.dtype))


def _kernels(
    device: torch.device,
) -> type[SparseSemiStructuredTensorCUSPARSELT | SparseSemiStructuredTensorCUTLASS] | None:
    """Return the class of the kernels that a device has; None if it has none."""
    if device.type == "cpu" or torch.version.cuda is None:
        return None
    generation = torch.get_device_module(device).get_device_capability(device)[0]
    if generation >= _CUTLASS_GENERATION and torch.backends.cusparselt.is_available():
        return SparseSemiStructuredTensorCUSPARSELT
    return SparseSemiStructuredTensorCUTLASS if generation == _CUTLASS_GENERATION else None
