"""A folder made from another one: it appears complete and on disk, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from relaxprune.problems.errors import RelaxPruneError

from .durable import sync_file, sync_folder
from .folder_lock import LOCK_NAME, refuse_held_folder
from .outputs import refuse_output_folder, refuse_unwritable_folder

_BLOCK = 512  # bytes that stat counts by
_CHUNK_BYTES = 2**22


@contextmanager
def new_folder(out: Path, source: Path | None) -> Iterator[Path]:
    """Yield an empty folder next to ``out``; on a clean exit it takes that name durably, on any error it is removed.

    Args:
        out: folder to create, new or empty.
        source: folder that the body reads, None for none.

    Yields:
        The folder to write to.

    Raises:
        RelaxPruneError: ``out`` is ``source``, lies in it, is not empty or cannot be written, or a run is under way in
            one of them. Nothing is written then.
    """
    target = out.resolve()  # for a link to an empty folder, that folder
    if source is not None and target.is_relative_to(source.resolve()):
        raise RelaxPruneError(f"output folder {str(out)!r} is or lies in {str(source)!r}, which is read: name another")
    if source is not None:
        refuse_held_folder(source)
    refuse_output_folder(out, "name one that is new or empty")
    if os.path.ismount(target):
        raise RelaxPruneError(
            f"output folder {str(out)!r} is a mount point, which cannot be renamed: name one inside it"
        )
    refuse_unwritable_folder(target.parent)
    made = [parent for parent in target.parents if not parent.exists()]
    staging = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        staging.mkdir(parents=True)
        if target.exists():
            shutil.copymode(target, staging)
        yield staging
        _flush(staging)
        if target.exists():
            target.rmdir()  # Windows cannot rename onto a folder; rmdir never removes one with files in it
        os.replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
    for parent in (target, *made):
        sync_folder(parent.parent)


def copy_others(source: Path, out: Path, leave: Collection[Path]) -> None:
    """Copy everything in a folder but a lock and the paths ``leave``; a link to a file becomes that file.

    Raises:
        RelaxPruneError: something cannot be copied: a broken link, a link to a folder, or a device.
    """
    out.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path in leave or path.name == LOCK_NAME:
            continue
        if path.is_file():
            _copy(path, out / path.name)
        elif path.is_dir() and not path.is_symlink():
            copy_others(path, out / path.name, leave)
        else:
            kind = "a link to a folder" if path.is_dir() else "a broken link" if path.is_symlink() else "not a file"
            raise RelaxPruneError(f"{str(path)!r} is {kind} and cannot be copied: remove it, or put a file there")


def _copy(source: Path, target: Path) -> None:
    """Copy a file's content; what takes no room on the disk takes none in the copy, as far as the system says so."""
    status = source.stat()
    if not hasattr(os, "SEEK_DATA") or status.st_blocks * _BLOCK >= status.st_size:
        shutil.copyfile(source, target)
        return
    with source.open("rb") as read, target.open("wb") as written:
        for start, end in _parts_with_data(read.fileno()):
            read.seek(start)
            written.seek(start)
            while start < end and (data := read.read(min(_CHUNK_BYTES, end - start))):
                start += written.write(data)
        written.truncate(status.st_size)


def _parts_with_data(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield where the parts of a file begin and end that take room on the disk."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # there is no more
                raise
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _flush(folder: Path) -> None:
    """Flush a folder and everything in it to the disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
