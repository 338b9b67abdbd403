"""The header of a ``.gguf`` file, read just far enough to know that the file is whole.

The ``gguf`` package parses the vocabulary into objects, which takes seconds; this walk skips it. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (little-endian, versions 2 and 3).
"""

from __future__ import annotations

import functools
import mmap
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.tensor_header import check_not_empty

_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 2**20
_MAX_DIMENSIONS = 4  # ggml's limit
_PARSING = threading.Lock()
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass
class _Cursor:
    """A reading position in the bytes of the file."""

    data: mmap.mmap
    at: int = 0

    def scalar(self, letter: str) -> int | float | bool:
        """Read one little-endian number of the given ``struct`` letter."""
        value: int | float | bool = struct.unpack_from(f"<{letter}", self.data, self.at)[0]
        self.at += struct.calcsize(letter)
        return value

    def count(self, letter: str = "Q") -> int:
        """Read one unsigned integer."""
        return int(self.scalar(letter))

    def skip_string(self) -> bytes:
        """Read one length-prefixed string."""
        length = self.count()
        self.at += length
        if self.at > len(self.data):
            raise struct.error("string beyond the end")
        return self.data[self.at - length : self.at]

    def value(self, kind: int) -> int | float | bool | bytes | None:
        """Read one metadata value; arrays are skipped and give None."""
        if kind == _STRING:
            return self.skip_string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, count = self.count("I"), self.count()
        if inner in _SCALARS:
            self.at += count * struct.calcsize(_SCALARS[inner])
        else:
            for _ in range(count):
                self.value(inner)
        return None


def check_gguf(path: Path) -> tuple[Counter[str], str | None]:
    """Check that a ``.gguf`` file is whole.

    Returns:
        The number of elements of each stored type (``"Q8_0"``...), and the licence that the file names, if any.

    Raises:
        RelaxPruneError: the file is empty, a git-LFS pointer, not a GGUF file, or shorter than its header declares.
    """
    what = f"model file {str(path)!r}"
    size = check_not_empty(path, what, "fetch it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise RelaxPruneError(f"{what} is not a GGUF file: it does not start with the letters GGUF")
        try:
            expected, counts, licence = _walk(_Cursor(data, 4))
        except (struct.error, KeyError, ValueError, OverflowError, RecursionError) as error:
            raise RelaxPruneError(
                f"{what} is truncated or corrupt: its header does not fit its {size} bytes; fetch it again"
            ) from error
    if size < expected:
        raise RelaxPruneError(f"{what} is truncated: {size} bytes of {expected}; fetch it again")
    return counts, licence


@contextmanager
def parsed_once() -> Iterator[None]:
    """Let ``gguf`` parse each file once while this is open, and make each architecture's table of names once.

    Loading a model asks four times for the file, vocabulary included, and once a module for the table: together they
    take longer than everything else.
    """
    import gguf

    module: Any = gguf  # whose names are not meant to be assigned
    with _PARSING:
        plain = module.GGUFReader, module.get_tensor_name_map
        read, named = functools.cache(plain[0]), functools.cache(plain[1])
        try:
            module.GGUFReader = lambda path, *mode: read(str(path), *mode)
            module.get_tensor_name_map = named
            yield
        finally:
            module.GGUFReader, module.get_tensor_name_map = plain


def gguf_tensors(path: Path) -> tuple[str, dict[str, int]]:
    """Return the architecture that a ``.gguf`` file names, and the entries of each of its tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"]
    name = bytes(architecture.parts[architecture.data[0]]).decode("utf-8")
    return name, {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}


def gguf_tensor(path: Path, name: str) -> Tensor:
    """Return one tensor of a ``.gguf`` file, dequantised to float32."""
    from gguf import GGUFReader, dequantize

    found = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == name)
    return torch.from_numpy(dequantize(found.data, found.tensor_type).copy())


def _walk(cursor: _Cursor) -> tuple[int, Counter[str], str | None]:
    """Return the bytes that the file must have, the elements of each type and its ``general.license``."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor.count("I")  # version
    tensors, pairs = cursor.count(), cursor.count()
    if max(tensors, pairs) > _MOST_ENTRIES:
        raise ValueError("more entries than any model has")
    metadata: dict[bytes, int | float | bool | bytes | None] = {}
    for _ in range(pairs):
        key = cursor.skip_string()
        metadata[key] = cursor.value(cursor.count("I"))
    end, counts = 0, Counter[str]()
    for _ in range(tensors):
        cursor.skip_string()
        dimensions = cursor.count("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError("more dimensions than a tensor can have")
        shape = [cursor.count() for _ in range(dimensions)]
        stored = GGMLQuantizationType(cursor.count("I"))
        counts[stored.name] += prod(shape)
        block, block_bytes = GGML_QUANT_SIZES[stored]
        end = max(end, cursor.count() + prod(shape) // block * block_bytes)
    blocks = [count for key, count in metadata.items() if key.endswith(b".block_count")]
    if any(isinstance(count, int) and count > tensors for count in blocks):
        raise ValueError("more blocks than tensors")
    alignment = metadata.get(b"general.alignment")
    step = alignment if isinstance(alignment, int) and alignment > 0 else 32
    licence = metadata.get(b"general.license")
    text = licence.decode("utf-8", "replace") if isinstance(licence, bytes) else None
    return -(-cursor.at // step) * step + end, counts, text
