"""How much memory this process uses and the system has left, as the system reports it."""

from __future__ import annotations

import os
import sys


def peak_memory_bytes() -> int | None:
    """Return the largest resident size of this process so far, in bytes; None if the system does not report it."""
    own = _kilobytes("/proc/self/status", "VmHWM:")
    if own is not None:
        return own
    try:
        import resource  # counts what a parent process held, too
    except ImportError:  # Windows has no such module.
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int | None:
    """Return the resident size of this process now, in bytes; the largest so far if only that is reported."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_memory_bytes()


def free_bytes() -> int | None:
    """Return how much memory can be taken without swapping, in bytes; None if the system does not report it."""
    return _kilobytes("/proc/meminfo", "MemAvailable:")


def _kilobytes(path: str, name: str) -> int | None:
    """Return an entry of one of the system's tables, in bytes; None if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
