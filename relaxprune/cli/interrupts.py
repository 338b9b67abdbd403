"""Signals that end a command: Ctrl-C, and those by which a system or a terminal ends a process.

While the libraries are imported nothing has been done, and a signal ends the process on the spot: an exception there
would reach whatever code of theirs swallows or renames it. A command that runs gets a ``KeyboardInterrupt``, and that
one came in is kept, so that the error that somebody made of it still counts as an interruption.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal has come in."""


class _Signals:
    """The signal that has come in, None for none; and whether the command is ending already."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.ending = False

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the command, unless it is ending."""
        if not self.ending:
            self.received = number
            raise Interrupted


_SIGNALS = _Signals()


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process: for the time before a command begins."""
    os.write(2, b"relaxprune: interrupted; nothing is written\n")
    os._exit(128 + number)


def answer(handler: Any) -> dict[int, Any]:
    """Have signals answered by ``handler``; one that is ignored (``nohup``) stays so.

    Returns:
        The handlers before, of the signals whose handler was changed; none outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    before = {number: found for number, found in before.items() if found not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn signals into interruptions of the body."""
    _SIGNALS.received, _SIGNALS.ending = None, False
    before = answer(_SIGNALS.interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is end_at_once else handler)


def interruption(error: BaseException) -> int | None:
    """Return the number of the signal that an error comes from, None for another error."""
    if _SIGNALS.received is not None:
        return _SIGNALS.received
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else None


def check() -> None:
    """Interrupt the command if a signal came in that some code has swallowed."""
    if _SIGNALS.received is not None and not _SIGNALS.ending:
        raise Interrupted


def begin_to_end() -> None:
    """Let no further signal disturb the end of the command."""
    _SIGNALS.ending = True
