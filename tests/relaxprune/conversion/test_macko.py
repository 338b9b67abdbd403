"""The MACKO form, read back by a reader that is written from its description and shares nothing with the writer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from relaxprune.conversion import convert_run
from relaxprune.conversion.macko import Macko
from relaxprune.runs import read_masks


def read(values, steps, starts, rows, cols) -> torch.Tensor:
    """Walk through each row, step by step."""
    weight = torch.zeros(int(rows), int(cols), dtype=values.dtype)
    for row in range(int(rows)):
        column = -1
        for place in range(int(starts[row]), int(starts[row + 1])):
            byte = int(steps[place // 2])
            column += (byte >> 4 if place % 2 else byte & 15) + 1
            weight[row, column] = values[place]
    return weight


def test_the_example_of_the_description() -> None:
    """Values 1, 2, 3 in columns 2, 36, 46: two zeros are kept, so that no step is longer than 16."""
    weight = torch.zeros(1, 48, dtype=torch.float16)
    weight[0, [2, 36, 46]] = torch.tensor([1, 2, 3], dtype=torch.float16)
    values, steps, starts, rows, cols = Macko().pack(weight)
    assert values.tolist() == [1, 0, 0, 2, 3, 0, 0, 0]
    assert steps.tolist() == [2 + 16 * 15, 15 + 16 * 1, 9, 0]
    assert (starts.tolist(), int(rows), int(cols)) == ([0, 5], 1, 48)
    assert (values.dtype, steps.dtype, starts.dtype) == (torch.float16, torch.uint8, torch.int32)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(3, 100), (5, 16), (4, 17), (1, 1)])
def test_any_zeros_come_back(density: float, shape: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(torch.float16)
    weight.masked_fill_(torch.rand(shape, generator=generator) >= density, 0.0)
    weight[0] = 0
    parts = Macko().pack(weight)
    assert torch.equal(read(*parts), weight)
    assert torch.equal(Macko().unpack(parts, shape, torch.float16), weight)
    assert len(parts[0]) % 8 == 0 and 2 * len(parts[1]) == len(parts[0])
    # No more is kept than every nonzero value and one of every 16 entries.
    assert int(parts[2][-1]) <= int((weight != 0).sum()) + weight.numel() // 16


def test_a_run_is_read_back_from_its_file(runs: Path, tmp_path: Path) -> None:
    found = convert_run(runs / "half", "macko", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.macko.safetensors")
    stored = load_file(runs / "half" / "model.safetensors")
    masks = read_masks(runs / "half")
    converted = [name for name in masks if f"{name.removesuffix('weight')}c_0" in tensors]
    assert len(converted) == found.layers == 5 and not set(converted) & set(tensors)
    for name in converted:
        weight = read(*(tensors[f"{name.removesuffix('weight')}c_{part}"] for part in range(5)))
        assert torch.equal(weight, stored[name].to(torch.float16)), name
        assert not weight[~masks[name]].any()
    # k and v have 16 rows; they are there as they were, with their reason.
    assert {item.parameter for item in found.left} == set(masks) - set(converted)
    assert all("16 rows" in item.reason for item in found.left)
    with safe_open(tmp_path / "out" / "model.macko.safetensors", framework="pt") as file:
        assert file.metadata()["target"] == "macko"


def test_a_dense_matrix_is_left_alone(runs: Path) -> None:
    """2.5 bytes a value: from four fifths on the form would be larger than the matrix."""
    weight = torch.ones(32, 64, dtype=torch.float16)
    weight[:, :8] = 0

    class Layer:
        parameter = "w"

        def matrix(self) -> torch.Tensor:
            return weight

    assert "more room" in Macko().reason(Layer())
    weight[:, :32] = 0
    assert Macko().reason(Layer()) == ""
    weight[0, 40] = float("inf")
    assert "float16" in Macko().reason(Layer())
