"""Mask files: exact round trip, the documented layout, and no damage that goes unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from relaxprune.problems import RelaxPruneError
from relaxprune.runs.mask_file import read_mask_file, read_masks, write_masks


def random_mask(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(shape, generator=generator) < 0.5


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (3, 8), (5, 9), (4, 64), (2, 3, 17), (5,), (0, 8), (3, 0)])
def test_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    masks = {"b.weight": random_mask(*shape), "a.weight": random_mask(2, 4)}
    write_masks(tmp_path / "masks.safetensors", masks, extra={"note": "é"})
    back, extra = read_mask_file(tmp_path / "masks.safetensors")
    assert extra == {"note": "é"}
    assert set(back) == set(masks)
    for name, mask in masks.items():
        assert back[name].dtype == torch.bool
        assert torch.equal(back[name], mask)


def test_layout_is_readable_without_relaxprune(tmp_path: Path) -> None:
    mask = random_mask(6, 19)
    write_masks(tmp_path / "masks.safetensors", {"w": mask})
    with safe_open(tmp_path / "masks.safetensors", framework="np") as file:
        packed = file.get_tensor("w")
        assert file.metadata()["shapes"] == '{"w": [6, 19]}'
        assert file.metadata()["schema_version"] == "1"
    assert packed.dtype == np.uint8 and packed.shape == (6, 3)
    assert packed[0, 0] == sum(int(bit) << position for position, bit in enumerate(mask[0, :8]))
    assert np.array_equal(np.unpackbits(packed, axis=-1, count=19, bitorder="little").astype(bool), mask.numpy())


def test_every_single_flipped_bit_is_detected(tmp_path: Path, long_run: bool) -> None:
    path = tmp_path / "masks.safetensors"
    write_masks(path, {"a": random_mask(3, 11), "b": random_mask(2, 8)}, extra={"block": 3})
    good = path.read_bytes()
    for position in range(len(good)):
        for bit in range(8) if long_run else [3 * position % 8]:
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            path.write_bytes(bad)
            with pytest.raises(RelaxPruneError):
                read_masks(path)
    path.write_bytes(good)
    assert set(read_masks(path)) == {"a", "b"}


def test_truncated_missing_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_masks(path)
    write_masks(path, {"a": random_mask(3, 11)})
    good = path.read_bytes()
    for length in (0, 4, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(RelaxPruneError, match="damaged"):
            read_masks(path)
    save_file({"a": torch.zeros(2, dtype=torch.uint8)}, path)
    with pytest.raises(RelaxPruneError, match="not a mask file"):
        read_masks(path)


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    names = [f"model.layers.{index}.weight" for index in range(5)]
    for turn in range(6):
        masks = {name: random_mask(3, 11) for name in (names if turn % 2 else reversed(names))}
        write_masks(tmp_path / str(turn), masks, extra={"é": 1})
        assert (tmp_path / str(turn)).read_bytes() == (tmp_path / "0").read_bytes()


def test_only_bool_tensors_are_masks(tmp_path: Path) -> None:
    with pytest.raises(RelaxPruneError, match="'a' must be a bool tensor"):
        write_masks(tmp_path / "m", {"a": torch.ones(2, 2)})
    assert not list(tmp_path.iterdir())
