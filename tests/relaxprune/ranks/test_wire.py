"""Trees that are told to other ranks arrive as they were, masks in an eighth of their size."""

from __future__ import annotations

import math

import pytest
import torch

from relaxprune.ranks.wire import pack, unpack


@pytest.mark.parametrize(
    "tree",
    [None, 3, "wörd", True, [], {}, {"a": [1, 2.5, None], "dict": {"tensor": "x", "bits": 1}}, [[["deep"]]], 1e-310],
)
def test_values_arrive(tree: object) -> None:
    assert unpack(pack(tree)) == tree


def test_floats_arrive_to_the_last_bit() -> None:
    values = [0.1 + 0.2, math.pi, math.inf, -0.0, 5e-324]
    found = unpack(pack(values))
    assert [value.hex() for value in found] == [value.hex() for value in values]
    assert math.isnan(unpack(pack(math.nan)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8])
def test_tensors_arrive(dtype: torch.dtype) -> None:
    tensor = torch.randn(5, 7).mul(50).abs().to(dtype)
    found = unpack(pack({"a": (tensor, tensor[0, 0]), "b": tensor.T}))
    assert torch.equal(found["a"][0], tensor) and found["a"][0].dtype == dtype
    assert torch.equal(found["a"][1], tensor[0, 0]) and found["a"][1].shape == ()
    assert torch.equal(found["b"], tensor.T)


def test_masks_are_told_as_bits() -> None:
    mask = torch.rand(64, 1001) > 0.5
    data = pack({"mask": mask, "again": mask})
    assert torch.equal(unpack(data)["mask"], mask) and unpack(data)["again"].dtype == torch.bool
    assert len(data) < 2 * mask.numel() / 8 * 1.05
    assert unpack(pack(torch.tensor(True))).dtype == torch.bool


def test_nothing_else_is_told() -> None:
    with pytest.raises(TypeError):
        pack({"a": object()})
