"""Where the values of travelling tensors are read from: the shards of a checkpoint, or memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.tensor_header import DTYPES, TensorEntry, read_header


class Source(Protocol):
    """Gives tensors by name."""

    @property
    def place(self) -> str:
        """Where they are, "cpu" or "disk"."""

    def read(self, name: str) -> Tensor:
        """Return a tensor, on the CPU, that nobody else holds."""


@runtime_checkable
class Writable(Source, Protocol):
    """Takes other values for its tensors, too."""

    def write(self, name: str, tensor: Tensor) -> None:
        """Take other values for a tensor, from any device."""


class Shards:
    """The tensors of some safetensors files, read one by one into memory of their own.

    Files are read, not mapped: pages of a mapped file count as memory of the process for as long as it is mapped.

    Attributes:
        entries: name -> what the header of its file says.

    Args:
        paths: the files.

    Raises:
        RelaxPruneError: a file is damaged, or two hold a tensor of one name.
    """

    place = "disk"

    def __init__(self, paths: Sequence[Path]) -> None:
        self.entries: dict[str, TensorEntry] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._states = {path: _state(path) for path in paths}
        for path in paths:
            header = read_header(path, f"weight file {str(path)!r}", "fetch it again")
            start = 8 + len(header.text.encode())
            twice = sorted({*header.tensors} & {*self.entries})
            if twice:
                raise RelaxPruneError(f"weight file {str(path)!r} holds {twice[0]!r}, which another one holds too")
            self.entries |= header.tensors
            self._places |= {name: (path, start + entry.start) for name, entry in header.tensors.items()}

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, file by file."""
        return iter(self.entries)

    def like(self, paths: Sequence[Path]) -> Shards:
        """Return other files of the same tensors."""
        return Shards(paths)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that a tensor is stored in."""
        return DTYPES[self.entries[name].dtype]

    def whole(self, name: str) -> str:
        """Return the name of the model's tensor that a stored one is part of: here its own."""
        return name

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """Return what is stored under a name, of the model's tensor that it is part of: here all of it."""
        return tensor

    def read(self, name: str) -> Tensor:
        """Return a tensor as it is stored, on the CPU.

        Raises:
            OSError: the file cannot be read.
            RelaxPruneError: it became shorter, or torch has no such dtype.
        """
        entry, (path, start) = self.entries[name], self._places[name]
        if entry.dtype not in DTYPES:
            raise RelaxPruneError(
                f"weight file {str(path)!r} stores {name!r} as {entry.dtype}, which torch cannot hold"
            )
        raw = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        if _state(path) != self._states[path]:
            raise RelaxPruneError(
                f"weight file {str(path)!r} was changed since it was opened: restore it and begin again"
            )
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            view, place = raw.numpy().data, 0
            while place < len(view):
                count = file.readinto(view[place:])
                if not count:
                    raise RelaxPruneError(f"weight file {str(path)!r} ends inside {name!r}: it was changed meanwhile")
                place += count
        return raw.view(DTYPES[entry.dtype]).view(entry.shape)


def _state(path: Path) -> tuple[int, int]:
    """Return what changes whenever a file is written to."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


class InMemory:
    """Tensors that are held in memory.

    Args:
        tensors: name -> tensor.
    """

    place = "cpu"

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def read(self, name: str) -> Tensor:
        """Return a copy of a tensor, on the CPU."""
        return self._tensors[name].detach().to("cpu", copy=True)
