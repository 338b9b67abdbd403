"""Writing files so that a crash, or a power cut, leaves either the old file or the new one and never half of one.

A new file is written under a temporary name in the same folder, flushed to the disk (``fsync``), renamed over the
target (``os.replace``, atomic within one file system) and the folder is flushed too, so that the rename itself lasts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

_CHUNK_BYTES = 1 << 22
_SCRATCH = re.compile(r"\..+\.[0-9a-f]{32}\.part")


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk; a system that cannot open folders (Windows) has no such flush."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file that another library wrote to the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def durable_path(target: Path) -> Iterator[Path]:
    """Give the path of a new empty file beside ``target``; on a clean exit it replaces ``target`` durably.

    The file is created with mode 0666 less the umask, as any file of the user's would be (``tempfile`` would make it
    0600, and the rename would keep that). If the body raises, the new file is removed and ``target`` is untouched.

    Args:
        target: the file to create or replace; its folder must exist.

    Yields:
        The path to write to.

    Raises:
        OSError: if the folder cannot be written.
    """
    scratch = target.with_name(f".{target.name}.{uuid4().hex}.part")
    os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield scratch
        sync_file(scratch)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(target.parent)


def sweep_scratch(folder: Path) -> None:
    """Remove what writers that were killed left under ``folder``: files whose names are those of ``durable_path``."""
    for path in folder.rglob(".*.part"):
        if _SCRATCH.fullmatch(path.name) and path.is_file():
            path.unlink()


def write_bytes(target: Path, data: bytes) -> None:
    """Write ``data`` to ``target`` durably."""
    with durable_path(target) as scratch:
        scratch.write_bytes(data)


def write_text(target: Path, text: str) -> None:
    """Write ``text`` to ``target`` durably, in UTF-8 with line feeds."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` to ``target`` durably as indented JSON.

    Raises:
        ValueError: for a NaN or an infinity, which JSON has no words for.
    """
    write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def move_into(source: Path, folder: Path) -> Path:
    """Move a finished file into ``folder`` (same file system) durably, replacing a file of the same name.

    The file gets the permissions that a new file of the user's would have.

    Returns:
        The file's new path.
    """
    target = folder / source.name
    with durable_path(target) as fresh:
        source.chmod(fresh.stat().st_mode & 0o777)
        sync_file(source)
        os.replace(source, fresh)
    sync_folder(source.parent)
    return target


def install_files(staging: Path, folder: Path) -> list[str]:
    """Move every file under ``staging`` to the same place under ``folder``, each durably.

    Returns:
        The files' paths relative to ``folder``, sorted.
    """
    moved = []
    for source in sorted(path for path in staging.rglob("*") if path.is_file()):
        relative = source.relative_to(staging)
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        move_into(source, (folder / relative).parent)
        moved.append(relative.as_posix())
    return moved


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
