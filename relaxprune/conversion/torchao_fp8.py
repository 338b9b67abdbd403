"""``torchao-fp8-2of4``: 8-bit floats with 2:4 zeros, for torchao's CUTLASS kernels on H100 and H200.

Values and scales of rows are those of ``torchao``'s own ``Float8Tensor`` (e4m3, a scale for each row). On disk a weight
is ``NAME.packed`` (rows, cols / 2) float8, ``NAME.meta`` (rows, cols / 32) int32, the places of the kept ones in the
layout that ``semi-structured`` has, and ``NAME.scale`` (rows, 1) float32. The layout that the kernels multiply with can
only be made by a kernel, on such a device: it is made there, from the same values, when the folder is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass as from_dense,
)
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_to_dense_cutlass as to_dense,
)

from relaxprune.models.layers import PrunableLayer

from .packed import PackedTarget
from .rounding import half_unit

_FLOAT8 = torch.float8_e4m3fn
_ROWS, _COLS = 16, 64  # torchao wants multiples of 16 x 16, the packing on disk of 16 x 64
_GENERATION = 9  # of NVIDIA's: the kernels are compiled for this one only


class TorchaoFp8(PackedTarget):
    """FP8 and 2:4 for torchao, as ``Float8DynamicActivationFloat8WeightConfig`` packs it."""

    name = "torchao-fp8-2of4"
    summary = "torchao's FP8 with 2:4 zeros, NVIDIA H100 and H200"
    package = "torchao"
    extra = "torchao"
    besides = "8-bit weights"
    tolerance = 0.4
    explains = "inputs of 8-bit floats"

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        """Return bfloat16, from which torchao quantises."""
        return torch.bfloat16

    def reason(self, layer: PrunableLayer) -> str:
        """Say why the kernels do not take a weight."""
        weight = layer.matrix()
        rows, cols = weight.shape
        if rows % _ROWS or cols % _COLS:
            return f"its shape {rows} x {cols} is no multiple of {_ROWS} x {_COLS}"
        kept = weight != 0
        if int(kept.reshape(rows, -1, 4).sum(dim=2).max()) > 2:
            return "its rows are not 2:4"
        if not bool(torch.isfinite(weight).all()):
            return "it has values that bfloat16 cannot hold"
        return "" if bool(kept.any(dim=1).all()) else "it has a row of zeros, for which torchao has no scale"

    def part_names(self, parameter: str) -> list[str]:
        """Return the names of values, places and scales."""
        return [f"{parameter}.packed", f"{parameter}.meta", f"{parameter}.scale"]

    def pack(self, weight: Tensor) -> list[Tensor]:
        """Return kept values (rows, cols / 2), their places, and the scale of each row."""
        from torchao.quantization import Float8Tensor, PerRow

        quantised = Float8Tensor.from_hp(weight.contiguous(), granularity=PerRow())
        # The places of 8-bit floats are found as those of 8-bit integers; only +0.0 is 0 then.
        packed, meta = from_dense(quantised.qdata.view(torch.int8))
        return [packed.view(_FLOAT8), meta, quantised.scale]

    def unpack(self, parts: list[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return the dense weight that the values and scales stand for."""
        return (_dense(parts).float() * parts[2]).reshape(shape).to(dtype)

    def place(self, module: nn.Module, parts: list[Tensor], device: torch.device) -> str:
        """Give a module torchao's own tensor, on a device that its kernels are compiled for."""
        if device.type == "cpu" or torch.version.cuda is None:
            return ""
        if torch.get_device_module(device).get_device_capability(device)[0] != _GENERATION:
            return ""
        values = _dense(parts).to(device)
        module.register_parameter("weight", nn.Parameter(_tensor(values, parts[2].to(device)), requires_grad=False))
        module.register_forward_pre_hook(_flatten)
        module.register_forward_hook(_unflatten)
        return "torchao FP8 2:4 (CUTLASS)"

    def rounding(self, weight: Tensor) -> Tensor:
        """Return half a unit of the last place of e4m3 in the row's scale, and twice that of bfloat16."""
        scale = weight.double().abs().amax(dim=1, keepdim=True) / torch.finfo(_FLOAT8).max
        bfloat16 = half_unit(weight, torch.bfloat16)
        # The scale comes from weights that are rounded to bfloat16 already.
        return (half_unit(weight, _FLOAT8, scale) + 2 * bfloat16) * (1 + torch.finfo(torch.bfloat16).eps)


def _dense(parts: list[Tensor]) -> Tensor:
    """Return the 8-bit floats (rows, cols) of a weight."""
    dense: Tensor = to_dense(parts[0].view(torch.int8), parts[1])
    return dense.view(_FLOAT8)


def _tensor(values: Tensor, scale: Tensor) -> Tensor:
    """Return torchao's tensor of 8-bit floats (rows, cols) with 2:4 zeros, on a device that can pack them."""
    from torchao.ops import to_sparse_semi_structured_cutlass_sm9x_f8 as packed_by_kernel
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.float8 import float8_sparse_2x4_2d_data_2d_metadata_tensor as home

    kwargs = home.QuantizeTensorToFloat8Kwargs(_FLOAT8, PerRow())
    data, metadata = packed_by_kernel(values)
    tensor: Tensor = home.Float8Sparse2x4_2DData2DMetadataTensor(
        data, metadata, scale, block_size=[1, values.shape[1]], act_quant_kwargs=kwargs, dtype=torch.bfloat16
    )
    return tensor


def _flatten(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Give the kernel two dimensions: torchao 0.18 passes it no more than that."""
    module.__dict__["_leading"] = inputs[0].shape[:-1]
    return (inputs[0].reshape(-1, inputs[0].shape[-1]),)


def _unflatten(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """Give the outputs the dimensions of the inputs."""
    return output.reshape(*module.__dict__["_leading"], output.shape[-1])
