"""Masks on disk: a safetensors file with one bit per weight and a checksum over everything in it.

Layout, format version 1: for each parameter name one ``uint8`` tensor. The last dimension of the mask is padded with
zero bits to whole bytes and packed in little bit order: column ``c`` is bit ``c % 8`` of byte ``c // 8``, and a set bit
means that the weight is KEPT. The safetensors metadata (strings) holds ``format``, ``schema_version``, ``shapes``
(JSON, name to the mask's shape), ``extra`` (JSON, the writer's own) and ``sha256`` (over all of these and the bits).
To read it without relaxprune: ``numpy.unpackbits(packed, axis=-1, count=cols, bitorder="little")``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.durable import write_bytes

MASKS_NAME = "masks.safetensors"  # in a run folder
FORMAT = "relaxprune.masks"
SCHEMA_VERSION = "1"


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask ``(..., cols)`` into uint8 ``(..., ceil(cols / 8))`` on the CPU, little bit order."""
    packed = np.packbits(mask.detach().cpu().numpy(), axis=-1, bitorder="little")
    return torch.from_numpy(packed)


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unpack uint8 ``(..., ceil(cols / 8))`` into a bool mask of ``shape`` ``(..., cols)`` on the CPU."""
    bits = np.unpackbits(packed.cpu().numpy(), axis=-1, count=shape[-1], bitorder="little")
    return torch.from_numpy(bits.astype(np.bool_))


def write_masks(path: str | Path, masks: Mapping[str, Tensor], extra: Any = None) -> str:
    """Write masks durably: the file appears whole or not at all.

    Args:
        path: the file to create or replace.
        masks: parameter name to bool mask ``(..., cols)``, True = kept.
        extra: anything that JSON can hold, kept beside the masks and under the same checksum.

    Returns:
        The checksum, in hexadecimal, as the file's metadata has it.

    Raises:
        TypeError: if a mask is not a bool tensor with at least one dimension.
        OSError: if the file cannot be written.
    """
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.ndim == 0:
            raise TypeError(f"mask {name!r} must be a bool tensor, got {mask.dtype} of shape {tuple(mask.shape)}")
    packed = {name: pack_mask(masks[name]) for name in sorted(masks)}
    shapes = {name: list(masks[name].shape) for name in sorted(masks)}
    metadata = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "shapes": json.dumps(shapes, sort_keys=True),
        "extra": json.dumps(extra, sort_keys=True, allow_nan=False),
    }
    metadata["sha256"] = _checksum(packed, metadata)
    write_bytes(Path(path), _in_order(save(packed, metadata)))
    return metadata["sha256"]


def read_masks(path: str | Path) -> dict[str, Tensor]:
    """Read a mask file and verify its checksum.

    Args:
        path: a file that ``write_masks`` made.

    Returns:
        Parameter name to bool mask ``(..., cols)`` on the CPU, True = kept.

    Raises:
        FileNotFoundError: if there is no such file.
        RelaxPruneError: if it is not a mask file, is of a newer format, or is damaged (one flipped bit is enough).
    """
    return read_mask_file(path)[0]


class PackedMasks(Mapping[str, Tensor]):
    """The masks of a file as ``read_masks`` gives them, each unpacked when it is asked for: to eight times its size."""

    def __init__(self, packed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Hold masks that ``pack_mask`` made, with the shape that each had."""
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
    """Read a mask file as ``read_masks`` does, with the ``extra`` value that was written beside the masks."""
    masks, extra = open_mask_file(path)
    return dict(masks), extra


def open_mask_file(path: str | Path) -> tuple[PackedMasks, Any]:
    """Read a mask file as ``read_mask_file`` does, and leave the masks packed until they are asked for."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"mask file {str(path)!r} does not exist")
    packed, metadata = _read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise RelaxPruneError(
            f"{str(path)!r} is not a mask file: its metadata must say format {FORMAT!r} (bool tensors "
            "that `masks export` wrote are for other programs)"
        )
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise RelaxPruneError(
            f"mask file {str(path)!r} has schema version {metadata.get('schema_version')!r}, "
            f"this relaxprune reads {SCHEMA_VERSION!r}"
        )
    if _checksum(packed, metadata) != metadata.get("sha256"):
        raise RelaxPruneError(f"mask file {str(path)!r} is damaged: its checksum does not match its content")
    shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
    return PackedMasks(packed, shapes), json.loads(metadata["extra"])


def _in_order(data: bytes) -> bytes:
    """Sort the header of a safetensors file: the library writes its metadata in an order that changes from run to run.

    The file starts with the header's length, 8 bytes, little-endian; the header is JSON, padded with spaces to a
    multiple of 8; offsets in it count from its end.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor and the metadata of a safetensors file, or say that it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, dict(file.metadata() or {})
    except (SafetensorError, UnicodeDecodeError) as error:
        raise RelaxPruneError(f"mask file {str(path)!r} is damaged or truncated: {error}") from error


def _checksum(packed: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 over the metadata (less ``sha256``) and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name in sorted(packed):
        tensor = packed[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
