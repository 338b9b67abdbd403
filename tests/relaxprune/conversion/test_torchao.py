"""FP8 with 2:4 zeros, against torchao's own tensor: without a device its values can be compared, not its products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from relaxprune.conversion import convert_run, load_converted
from relaxprune.runs import read_masks

pytest.importorskip("torchao", reason="torchao is not installed: pip install 'relaxprune[torchao]'")


def test_values_and_scales_are_torchao_s(runs: Path, tmp_path: Path) -> None:
    from torchao.quantization import Float8Tensor, PerRow

    found = convert_run(runs / "two_of_four", "torchao-fp8-2of4", tmp_path / "out")
    stored, masks = load_file(runs / "two_of_four" / "model.safetensors"), read_masks(runs / "two_of_four")
    converted = load_converted(tmp_path / "out")
    assert found.layers == 1 and len(found.left) == 6 and converted.kernel == ""
    for name in converted.weights:
        own = Float8Tensor.from_hp(stored[name].to(torch.bfloat16), granularity=PerRow())
        dense = converted.weights[name]()
        assert torch.equal(dense, own.dequantize().to(dense.dtype))
        assert not dense[~masks[name]].any()
    file = load_file(tmp_path / "out" / "model.torchao-fp8-2of4.safetensors")
    packed = next(tensor for name, tensor in file.items() if name.endswith(".packed"))
    assert packed.dtype == torch.float8_e4m3fn
