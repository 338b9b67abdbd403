"""How much memory this process uses, as the system reports it."""

from __future__ import annotations

import os
import sys


def peak_memory_bytes() -> int | None:
    """Return the largest resident size of this process so far, in bytes; None if the system does not report it."""
    try:
        import resource
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
