"""Worker processes: each has one call at a time, so that one that dies takes no other call with it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """A process of the standard executor, started anew (spawn) with nothing of this one's threads and locks.

    It does not hear Ctrl-C, which the terminal sends to all processes: the one that the user started answers it. It
    ends with that one, however that ends.
    """

    def __init__(self, threads: int) -> None:
        """Start a process in which torch uses so many threads."""
        others = set(active_children())
        with _deaf_to_interrupts():
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(threads,))
            self._ready = self._pool.submit(os.getpid)
        self._process = next(process for process in active_children() if process not in others)

    @property
    def began(self) -> bool:
        """Whether the process has come as far as to take calls."""
        return self._ready.done() and self._ready.exception() is None

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Have a call done, which must be one that another process can be sent.

        The future raises ``BrokenProcessPool`` where the process dies.
        """
        return self._pool.submit(call)

    def death(self) -> str:
        """Say how the process ended, once it has died."""
        self.stop()
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"was killed by {names.get(-code, f'signal {-code}')}"

    def stop(self) -> None:
        """Let the process end once it has nothing to do, and wait for that."""
        self._pool.shutdown(cancel_futures=True)

    def kill(self) -> None:
        """End the process now, whatever it does."""
        self._process.kill()
        self.stop()


def _begin(threads: int) -> None:
    """Prepare a new process: its threads, and its end with the process that started it."""
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end too."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Block Ctrl-C in the body; processes that are started there keep it blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
