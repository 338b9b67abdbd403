"""The header of a safetensors file, checked against the file's size before anything that it declares is allocated.

Layout (https://github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; the header, a JSON
object; the data. The header names every tensor's dtype, shape and place in the data, which tensors fill without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError

from .json_files import is_kind, parse_json
from .sentences import damaged, first_line

_LFS_START = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_MAX_DIMENSIONS = 64  # that of torch
_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
# Older versions of torch lack some; none has a dtype for one entry of a sub-byte format.
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, torch_name) for name, torch_name in _TORCH_NAMES.items() if hasattr(torch, torch_name)
}
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8} | {
    name: 8 * dtype.itemsize for name, dtype in DTYPES.items()
}


@dataclass(frozen=True)
class TensorEntry:
    """What a header says about one tensor.

    Attributes:
        dtype: its name in the format, such as "BF16".
        shape: its shape.
        start, end: where its bytes lie, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class TensorHeader:
    """A header that matches its file.

    Attributes:
        tensors: name -> entry, in the order of the data.
        metadata: the strings that the file holds in addition to its tensors.
        text: the header as it is in the file.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    text: str


def check_not_empty(path: Path, what: str, advice: str = "") -> int:
    """Return the size of a file in bytes; arguments and errors as in ``read_header``."""
    size = path.stat().st_size
    if size == 0:
        raise damaged(what, "it is empty", advice)
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LFS_START):
        lines = [line.split() for line in start.decode("ascii", "replace").splitlines()]
        expected = next((line[1] for line in lines if len(line) == 2 and line[0] == "size"), "an unknown number of")
        raise RelaxPruneError(
            f"{what} is a git-LFS pointer of {size} bytes, not the file of {expected} bytes: run `git lfs pull`"
        )
    return size


def read_header(path: Path, what: str, advice: str = "") -> TensorHeader:
    """Read the header of a safetensors file.

    Args:
        path: the file.
        what: its name in error messages.
        advice: what to do about a damaged one.

    Raises:
        OSError: there is no such file, or it cannot be read.
        RelaxPruneError: the file is empty or a git-LFS pointer, its size is not the one that its header declares, or
            its header is invalid.
    """
    size = check_not_empty(path, what, advice)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise damaged(what, f"it is not a safetensors file, its header claims {length} bytes", advice)
        if 8 + length > size:
            raise damaged(what, f"it is truncated, {size} bytes of at least {8 + length}", advice)
        raw = file.read(length)
    try:
        header = _parse(raw.decode("utf-8"))
    except ValueError as error:
        raise damaged(what, f"its safetensors header is corrupt ({first_line(error)})", advice) from error
    declared = 8 + length + max((entry.end for entry in header.tensors.values()), default=0)
    if size != declared:
        state = "truncated" if size < declared else "too long"
        raise damaged(what, f"it is {state}, {size} bytes instead of the {declared} that its header declares", advice)
    return header


def header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Return the header of a file with these tensors, and the names in the order in which their bytes follow it.

    Equal tensors and metadata give equal bytes, which are those that the library writes; that has metadata of several
    keys in no fixed order.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    start = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in names or name == "__metadata__":
            raise RelaxPruneError(f"safetensors cannot store tensor {name!r} of dtype {tensor.dtype}")
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, order


def _parse(text: str) -> TensorHeader:
    """Return what a header says; raises ValueError unless it is consistent."""
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is not text")
    entries = {name: _entry(value) for name, value in content.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    place = 0
    for entry in ordered.values():
        if entry.start != place:
            raise ValueError("gaps or overlaps between tensors")
        place = entry.end
    return TensorHeader(ordered, metadata, text)


def _entry(value: Any) -> TensorEntry:
    """Return one tensor's entry; raises ValueError unless its bytes are as many as its dtype and shape need."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("an entry other than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError("a dtype that safetensors does not know")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError("a shape or data_offsets that are not lists of counts")
    if len(shape) > _MAX_DIMENSIONS or any(size >= 2**63 for size in shape):
        raise ValueError("a shape that no tensor can have")
    bits = _BITS[dtype]
    for size in shape:
        bits *= size
    if bits != 8 * (offsets[1] - offsets[0]):
        raise ValueError("data_offsets that do not match the size of the tensor")
    return TensorEntry(dtype, tuple(shape), *offsets)


def _counts(value: Any) -> bool:
    """Return whether a value is a list of non-negative integers."""
    return isinstance(value, list) and all(is_kind(item, int) and item >= 0 for item in value)
