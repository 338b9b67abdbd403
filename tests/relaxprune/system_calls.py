"""A disk that dies or refuses: every call that would change files of a folder is counted, and one of them fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_MAKING = ("open", "os.mkdir", "os.fsync")
_CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.chmod")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Dead(BaseException):
    """The process is gone: no code that cleans up can do anything any more."""


class Disk:
    """Counts calls under ``folder``; the ``at``-th fails with ``error``, and those after it that ``then`` names.

    Attributes:
        calls: the calls so far.
    """

    def __init__(
        self, folder: Path, at: int = 0, error: BaseException | None = None, then: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.at, self.error, self.then = str(folder), at, error, then
        self.calls: list[str] = []

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a call, and let it fail."""
        if not self.concerns(event, arguments):
            return
        self.calls.append(event)
        count = len(self.calls)
        if self.error is not None and (count == self.at or (count > self.at > 0 and event in self.then)):
            raise self.error

    def concerns(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Tell whether a call changes something under the folder."""
        if event == "os.fsync":
            return True
        path = arguments[0]
        if isinstance(path, int) or path is None:
            return False
        name = os.fsdecode(path)
        if not os.path.isabs(name):  # in a folder that is open, as ``shutil.rmtree`` removes
            return event in ("os.remove", "os.rmdir") and arguments[-1] != -1
        return name.startswith(self.folder) and (event != "open" or bool((arguments[2] or 0) & _WRITING))


_disks: list[Disk] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _disks and event in (*_MAKING, *_CHANGING):
        _disks[-1].see(event, arguments)


_HOOKED: list[None] = []


@contextmanager
def disk(folder: Path, at: int = 0, error: BaseException | None = None, then: str = "") -> Iterator[Disk]:
    """Watch the calls of the body; after the one that fails, ``then`` fail: "all", those that "make", or none ("")."""
    if not _HOOKED:
        _HOOKED.append(sys.addaudithook(_hook))  # a hook stays for good
    names = {"all": (*_MAKING, *_CHANGING), "make": _MAKING, "": ()}[then]
    _disks.append(Disk(folder, at, error, names))
    with pytest.MonkeyPatch.context() as patch:
        flush = os.fsync
        patch.setattr(os, "fsync", lambda descriptor: (_hook("os.fsync", (descriptor,)), flush(descriptor))[1])
        try:
            yield _disks[-1]
        finally:
            _disks.pop()
