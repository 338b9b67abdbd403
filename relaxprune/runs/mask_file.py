"""Masks on disk: a safetensors file with one bit per weight and a checksum over everything in it.

Layout, format version 1: for each parameter name one ``uint8`` tensor. The last dimension of the mask is padded with
zero bits to whole bytes and packed in little bit order: column ``c`` is bit ``c % 8`` of byte ``c // 8``, and a set bit
means that the weight is KEPT. The safetensors metadata (strings) holds ``format``, ``schema_version``, ``shapes``
(JSON, name to the mask's shape), ``extra`` (JSON, the writer's own) and ``sha256`` (over all of these and the bits).
To read it without relaxprune: ``numpy.unpackbits(packed, axis=-1, count=cols, bitorder="little")``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.container import TensorFormat, metadata_json, read_container, write_container
from relaxprune.support.mask_bits import fits, pack_mask, unpack_mask

MASKS_NAME = "masks.safetensors"  # in a run folder
MASK_FILE = TensorFormat(
    kind="mask file",
    name="relaxprune.masks",
    keys=("shapes", "extra"),
    hint=" (bool tensors that `masks unpack` wrote are for other programs)",
)


def write_masks(path: str | Path, masks: Mapping[str, Tensor], extra: Any = None) -> str:
    """Write masks durably: the file appears whole or not at all.

    Args:
        path: the file to create or replace.
        masks: parameter name to bool mask ``(..., cols)``, True = kept.
        extra: any JSON value, stored with the masks and under the same checksum.

    Returns:
        The checksum, in hexadecimal, as the file's metadata has it.

    Raises:
        RelaxPruneError: if a mask is not a bool tensor with at least one dimension.
        OSError: if the file cannot be written.
    """
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.ndim == 0:
            raise RelaxPruneError(f"mask {name!r} must be a bool tensor, got {mask.dtype} of shape {tuple(mask.shape)}")
    shapes = {name: list(masks[name].shape) for name in sorted(masks)}
    metadata = {
        "shapes": json.dumps(shapes, sort_keys=True),
        "extra": json.dumps(extra, sort_keys=True, allow_nan=False),
    }
    packed = {name: pack_mask(masks[name]) for name in sorted(masks)}
    return write_container(Path(path), MASK_FILE, packed, metadata)["sha256"]


def read_masks(path: str | Path) -> dict[str, Tensor]:
    """Read the masks of a run folder or of a mask file, and verify their checksum.

    Args:
        path: a folder that ``relaxprune prune`` wrote, or a file that ``write_masks`` made.

    Returns:
        Parameter name to bool mask ``(..., cols)`` on the CPU, True = kept.

    Raises:
        FileNotFoundError: if there is no such file.
        RelaxPruneError: if it is not a mask file, has another version, or is damaged (one flipped bit is enough).
    """
    return read_mask_file(path)[0]


class PackedMasks(Mapping[str, Tensor]):
    """The masks of a file as ``read_masks`` returns them, each unpacked (to eight times its size) on access."""

    def __init__(self, packed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Hold masks that ``pack_mask`` made, with their original shapes."""
        self._packed, self.shapes = packed, shapes

    def __getitem__(self, name: str) -> Tensor:
        """Unpack one mask, (..., cols) bool on the CPU."""
        return unpack_mask(self._packed[name], self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        """Iterate over the parameters' names."""
        return iter(self._packed)

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self._packed)


def read_mask_file(path: str | Path) -> tuple[dict[str, Tensor], Any]:
    """Read masks as ``read_masks`` does, with the ``extra`` value that was written with them."""
    masks, extra = open_mask_file(path)
    return dict(masks), extra


def open_mask_file(path: str | Path) -> tuple[PackedMasks, Any]:
    """Read masks as ``read_mask_file`` does, but leave them packed until they are accessed."""
    path = Path(path)
    file = path / MASKS_NAME if path.is_dir() else path
    packed, metadata = read_container(file, MASK_FILE)
    shapes = metadata_json(metadata, "shapes", file, MASK_FILE)
    extra = metadata_json(metadata, "extra", file, MASK_FILE)
    if not isinstance(shapes, dict) or set(shapes) != set(packed):
        raise RelaxPruneError(f"{MASK_FILE.describe(file)} is damaged: it does not state the shapes of its masks")
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not fits(packed[name], shape):
            raise RelaxPruneError(f"{MASK_FILE.describe(file)} is damaged: mask {name!r} is not of the shape it states")
    return PackedMasks(packed, {name: tuple(shape) for name, shape in shapes.items()}), extra
