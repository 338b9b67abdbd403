"""Signals that end a command: Ctrl-C, and those by which a system or a terminal ends a process.

Before a command runs nothing has been done, and a signal ends the process on the spot. A command that runs gets a
``KeyboardInterrupt``; that a signal came in is kept, so that an error that a library makes of it still counts as an
interruption. It waits until no module is being imported: libraries swallow or rename an exception there, and code of
theirs that is not Python may end the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_AGAIN_S = 0.05
_PATIENCE_S = 20.0  # longer than imports take; where the command itself runs in an import, that never ends


class Interrupted(KeyboardInterrupt):
    """A signal has come in."""


class _Signals:
    """The signal that has come in, None for none; and whether the command is ending already."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.ending = False
        self._until = 0.0

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the command, unless it is ending; while it imports, look again a little later."""
        if self.ending:
            return
        if self.received is None:
            self.received, self._until = number, time.monotonic() + _PATIENCE_S
        if hasattr(signal, "setitimer") and _importing(frame) and time.monotonic() < self._until:
            signal.signal(signal.SIGALRM, self.interrupt)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
            return
        raise Interrupted

    def reset(self) -> None:
        """Forget what has come in."""
        if self.received is not None and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.received, self.ending = None, False


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
    _SIGNALS.reset()
    before, told = answer(_SIGNALS.interrupt), sys.unraisablehook
    # Raised inside a finaliser an interruption is lost, but for the signal that is kept: it is no news to tell.
    sys.unraisablehook = lambda lost: None if lost.exc_type is Interrupted else told(lost)
    try:
        yield
    finally:
        sys.unraisablehook = told
        _SIGNALS.reset()
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


def forget() -> None:
    """Forget a signal that came in: the command ends for another reason."""
    _SIGNALS.reset()


def begin_to_end() -> None:
    """Let no further signal disturb the end of the command."""
    _SIGNALS.ending = True


def _importing(frame: FrameType | None) -> bool:
    """Tell whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
