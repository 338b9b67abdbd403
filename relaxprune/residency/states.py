"""Hidden states between two blocks: kept on the device, in memory beside it, or on disk."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from relaxprune.support.container import open_tensors, write_data
from relaxprune.support.tensor_header import header_bytes

from .residency import Residency

_NAME = "state"


class Kept(Protocol):
    """A tensor that is kept somewhere."""

    def tensor(self) -> Tensor:
        """Return it, on the device that it came from; nobody may change it."""


class Shelf:
    """Keeps tensors where they are.

    Attributes:
        moves: whether tensors leave the device.
    """

    moves = False

    def put(self, tensor: Tensor) -> Kept:
        """Keep a tensor until nobody holds what is returned."""
        return _Here(tensor)


HERE = Shelf()


class _Here:
    """A tensor that stays where it is."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def tensor(self) -> Tensor:
        """Return it."""
        return self._tensor


class _InMemory(Shelf):
    """Keeps tensors in memory beside their device."""

    moves = True

    def put(self, tensor: Tensor) -> Kept:
        """Keep a tensor."""
        return _Beside(tensor.to("cpu"), tensor.device)


class _Beside:
    """A tensor that lies in memory."""

    def __init__(self, tensor: Tensor, device: torch.device) -> None:
        self._tensor, self._device = tensor, device

    def tensor(self) -> Tensor:
        """Bring it to its device."""
        return self._tensor.to(self._device)


class _OnDisk(Shelf):
    """Keeps tensors in files, which are mapped into memory when they are read.

    Args:
        folder: for the files.
    """

    moves = True

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, count()

    def put(self, tensor: Tensor) -> Kept:
        """Write a tensor to a file of its own, which goes when nobody needs it any more."""
        path = self._folder / f"{next(self._numbers):08d}.safetensors"
        header, _ = header_bytes({_NAME: tensor}, {})
        with path.open("wb") as file:
            write_data(file, header, [tensor])
        kept = _Filed(path, tensor.device)
        weakref.finalize(kept, path.unlink, missing_ok=True)
        return kept


class _Filed:
    """A tensor that lies in a file."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path, self._device = path, device

    def tensor(self) -> Tensor:
        """Map it, and bring it to its device."""
        with open_tensors(self._path, f"hidden states {str(self._path)!r}") as file:
            return file.tensor(_NAME).to(self._device)


@contextmanager
def shelf_of(residency: Residency) -> Iterator[Shelf]:
    """Return what keeps the hidden states of a run, inside; files have a folder of their own, and are gone then."""
    if residency.states == "device":
        yield HERE
    elif residency.states == "cpu":
        yield _InMemory()
    else:
        if residency.folder is not None:
            residency.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="relaxprune-states-", dir=residency.folder) as folder:
            yield _OnDisk(Path(folder))
