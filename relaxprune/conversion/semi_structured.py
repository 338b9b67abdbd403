"""``semi-structured``: the form in which torch's 2:4 kernels (NVIDIA, Ampere and later) hold a weight.

Each weight is stored as ``NAME.packed`` (rows, cols / 2), the two kept values of every four in order, and ``NAME.meta``
(rows, cols / 16) int16, their places in the layout of CUTLASS, as ``torch.sparse.SparseSemiStructuredTensorCUTLASS``
has them: 9 bits of 16 in bfloat16 and float16.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUTLASS
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

_FIRST_GENERATION = (8, 0)  # of NVIDIA's that multiplies 2:4


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
        """Give a module the packed weight, on a device of the right generation."""
        if device.type == "cpu" or torch.version.cuda is None:
            return ""
        if torch.get_device_module(device).get_device_capability(device) < _FIRST_GENERATION:
            return ""
        packed, meta = (part.to(device) for part in parts)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="The PyTorch API of SparseSemiStructuredTensor", category=UserWarning
            )
            weight = SparseSemiStructuredTensorCUTLASS(
                torch.Size((packed.shape[0], 2 * packed.shape[1])), packed, meta, None, None, None
            )
        module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        return "torch semi-structured (CUTLASS)"

    def rounding(self, weight: Tensor) -> Tensor:
        """Return half a unit of the last place of the 16-bit dtype."""
        return half_unit(weight, self.dtype(weight.dtype))
