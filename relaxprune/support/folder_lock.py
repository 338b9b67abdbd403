"""One process per folder: a lock that the system holds, so that a process that is dead does not.

The lock is a file in the folder, locked by ``filelock``: with ``flock`` where the file system has it, network file
systems included; else by the file's existence and the process that it names. It is removed when it is given back.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from relaxprune.problems.errors import RelaxPruneError

LOCK_NAME = ".relaxprune.lock"


@contextmanager
def folder_lock(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a folder for this process; it is made where it is missing, and removed again if nothing was put into it.

    Args:
        folder: what this process writes to.
        wait_s: how long to wait for another process.

    Raises:
        RelaxPruneError: another process holds it, naming that; or the folder was removed, and the body fails for it.
        OSError: the lock file cannot be made.
    """
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(folder, wait_s)
        try:
            _sign(lock)
            yield
        except Exception as error:
            if isinstance(error, RelaxPruneError) or not _is_gone(folder):
                raise
            raise RelaxPruneError(
                f"folder {str(folder)!r} was removed while it was written to: nothing in it is kept"
            ) from error
        finally:
            _give_back(lock)
    finally:
        for path in made:
            with suppress(OSError):  # something is in it, or it is gone
                path.rmdir()


def refuse_held_folder(folder: Path) -> None:
    """Refuse a folder that another process holds.

    Raises:
        RelaxPruneError: naming the process.
    """
    if (folder / LOCK_NAME).exists():
        with suppress(OSError):  # where nothing can be written, nobody writes
            _give_back(_acquired(folder, 0.0))


def _acquired(folder: Path, wait_s: float) -> BaseFileLock:
    """Return the lock of a folder, held."""
    lock = FileLock(folder / LOCK_NAME, timeout=wait_s, thread_local=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file system has no flock: the file's existence has to do
            lock.acquire()
    except Timeout as error:
        raise RelaxPruneError(f"a run is under way in {str(folder)!r} ({_holder(folder / LOCK_NAME)})") from error
    return lock


def _sign(lock: BaseFileLock) -> None:
    """Write into a lock's file which process holds it, as far as the disk takes that."""
    if not isinstance(lock, SoftFileLock):  # that one has written the same
        with suppress(OSError):
            Path(lock.lock_file).write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")


def _give_back(lock: BaseFileLock) -> None:
    """Remove a lock's file while it is held, so that nobody's lock is removed but this one, and let go of it.

    Whoever has opened the file meanwhile finds it without a name, and makes a new one.
    """
    try:
        if not isinstance(lock, SoftFileLock):
            with suppress(OSError):  # Windows removes no open file
                os.unlink(lock.lock_file)
    finally:
        with suppress(OSError):
            lock.release()


def _is_gone(folder: Path) -> bool:
    """Tell whether somebody has removed a folder, which the lock in it keeps from being empty."""
    try:
        folder.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _holder(path: Path) -> str:
    """Say which process holds a lock, as far as its file tells."""
    try:
        number, host = path.read_text(encoding="utf-8").split()[:2]
    except (OSError, ValueError):
        return "by another process"
    return f"process {number} on {host}"
