"""Checks that an output can be written, made before the work that would otherwise be lost."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from relaxprune.problems.errors import RelaxPruneError

from .folder_lock import LOCK_NAME, refuse_held_folder

_MIB = 2**20


def refuse_output_file(path: Path) -> None:
    """Refuse a file that exists, or that cannot be created in its folder, or a folder that a run writes to.

    Raises:
        RelaxPruneError: naming the file.
    """
    if path.exists():
        raise RelaxPruneError(f"output file {str(path)!r} exists; name a new one")
    if not path.parent.is_dir():
        raise RelaxPruneError(
            f"output file {str(path)!r} cannot be written: create the folder {str(path.parent)!r}, or name another file"
        )
    _refuse_unwritable(path.parent, f"output file {str(path)!r}")
    refuse_held_folder(path.parent)


def refuse_output_folder(path: Path, advice: str = "name a new one") -> None:
    """Refuse a folder that is not empty, or that cannot be created or written to, or that a run writes to.

    Args:
        path: the folder; it and its parents need not exist yet.
        advice: what to do about a folder that is not empty.

    Raises:
        RelaxPruneError: naming the folder.
    """
    refuse_unwritable_folder(path)
    refuse_held_folder(path)
    if path.is_dir() and any(item.name != LOCK_NAME for item in path.iterdir()):
        raise RelaxPruneError(f"output folder {str(path)!r} is not empty; {advice}")


def refuse_unwritable_folder(path: Path) -> None:
    """Refuse a folder that cannot be created or written to, whatever is in it.

    Raises:
        RelaxPruneError: naming the folder.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if existing == path and not path.is_dir():
        raise RelaxPruneError(f"output folder {str(path)!r} is a file; name a folder that is new or empty")
    _refuse_unwritable(existing, f"output folder {str(path)!r}")


def refuse_full(path: Path, needed: int, what: str) -> None:
    """Refuse a folder on a disk that has not ``needed`` bytes free, for ``what``.

    Raises:
        RelaxPruneError: naming the folder, what is needed and what is free.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RelaxPruneError(
            f"output folder {str(path)!r} needs about {needed / _MIB:.1f} MiB for {what}, and "
            f"{free / _MIB:.1f} MiB are free: make room, or name a folder on another disk"
        )


def _refuse_unwritable(folder: Path, output: str) -> None:
    """Refuse unless a file can be created in ``folder``: permissions alone do not show it (read-only file systems)."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RelaxPruneError(f"{output} cannot be written: {error.strerror} in {str(folder)!r}") from error
