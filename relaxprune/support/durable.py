"""Durable writes: a crash or a power cut leaves either the old file or the new one, never half of one.

A new file is written under a temporary name in the same folder, flushed to the disk (``fsync``), renamed over the
target (``os.replace``, atomic within one file system) and the folder is flushed too, so that the rename itself lasts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

_CHUNK_BYTES = 1 << 22
_SCRATCH = re.compile(r"\..+\.[0-9a-f]{32}\.part")


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk; do nothing on Windows, which cannot open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush to disk a file that another library wrote."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def durable_path(target: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file next to ``target``; on a clean exit it replaces ``target`` durably.

    The file is created with mode 0666 less the umask, like any new file of the user's (``tempfile`` would use 0600, and
    the rename would keep that). If the body raises, the new file is removed and ``target`` is untouched.

    Args:
        target: the file to create or replace; its folder must exist.

    Yields:
        The path to write to.

    Raises:
        OSError: the folder cannot be written to.
    """
    scratch = _new_scratch(target)
    try:
        yield scratch
        sync_file(scratch)
        os.replace(scratch, target)
    except BaseException:
        with suppress(OSError):  # what was refused first is what the user must know
            scratch.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def _new_scratch(target: Path) -> Path:
    """Make an empty file next to ``target``."""
    scratch = target.with_name(f".{target.name}.{uuid4().hex}.part")
    os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return scratch


def sweep_scratch(folder: Path) -> None:
    """Remove the temporary files that killed writers left under ``folder``, named as by ``durable_path``."""
    for path in folder.rglob(".*.part"):
        if is_scratch(path):
            path.unlink()


def is_scratch(path: Path) -> bool:
    """Tell whether a file is what a writer that was killed has left."""
    return _SCRATCH.fullmatch(path.name) is not None and path.is_file()


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
        ValueError: the value holds a NaN or an infinity, which JSON cannot represent.
    """
    write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def move_into(source: Path, folder: Path) -> Path:
    """Move a finished file into ``folder`` (same file system) durably, replacing a file of the same name.

    The file gets the permissions of a newly created file. It is in one of the two places at any moment.

    Returns:
        The file's new path.
    """
    target = folder / source.name
    fresh = _new_scratch(target)
    try:
        source.chmod(fresh.stat().st_mode & 0o777)
    finally:
        fresh.unlink()
    sync_file(source)
    os.replace(source, target)  # at once: a kill finds the file under one of its names, never under a temporary one
    sync_folder(folder)
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


def file_facts(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file, as JSON values: ``bytes`` and ``sha256``."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def is_unchanged(path: Path, facts: Mapping[str, Any]) -> bool:
    """Tell whether a path is a file with the size and SHA-256 of ``file_facts``; one of another size is not read."""
    return path.is_file() and path.stat().st_size == facts["bytes"] and file_sha256(path) == facts["sha256"]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
