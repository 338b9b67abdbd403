"""Whether a process of this machine lives, and whether it does anything."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

_BUSY = 0.05  # of a processor: threads that only wait and give signs of life take less


@dataclass(frozen=True)
class Home:
    """Where a process lives.

    Attributes:
        process: its number.
        host: the machine's name.
        space: which numbers of processes it sees; a container has its own.
    """

    process: int
    host: str
    space: str

    @classmethod
    def here(cls) -> Home:
        """Return this process's."""
        space = ""
        with suppress(OSError):
            space = os.readlink("/proc/self/ns/pid")
        return cls(os.getpid(), socket.gethostname(), space)

    @classmethod
    def from_json(cls, text: str) -> Home:
        """Undo ``to_json``."""
        return cls(*json.loads(text))

    def to_json(self) -> str:
        """Return it for another process."""
        return json.dumps(astuple(self))

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def is_beside(self, other: Home) -> bool:
        """Return whether the two can see each other."""
        return (self.host, self.space) == (other.host, other.space)

    def exists(self) -> bool:
        """Return whether the process, of this machine, is there and not dead."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except OSError:  # another user's
            return True
        return _look(f"/proc/{self.process}/stat")[0] != "Z"

    def ticks(self) -> int:
        """Return how much the process, of this machine, has computed, 0 where the system does not say."""
        return _look(f"/proc/{self.process}/stat")[1]


class MainThread:
    """The main thread of this process, seen from another thread.

    Attributes:
        working: whether it should be doing something; what it does before it first waits for others does not count.
    """

    def __init__(self) -> None:
        self.working = False
        self._busy, self._now = 0.0, time.monotonic()
        self._since = self._now

    def stuck(self, limit_s: float) -> bool:
        """Return whether it has slept for long while nothing in this process computes; waiting for a disk is no sleep.

        Always False where the system does not say. To be asked every now and then, always by the same thread.
        """
        busy, now = time.process_time() - time.thread_time(), time.monotonic()
        computes = busy - self._busy > _BUSY * (now - self._now)
        self._busy, self._now = busy, now
        if computes or not self.working or _look(f"/proc/{os.getpid()}/stat")[0] not in ("S", "T", "t"):
            self._since = now
        return now - self._since > limit_s


def _look(path: str) -> tuple[str, int]:
    """Return the state of a process or thread, and its ticks of processor time, from its file in /proc; "" for none."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(path).read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[11]) + int(fields[12])
    return "", 0
