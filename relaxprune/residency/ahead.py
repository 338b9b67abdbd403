"""Reading ahead: one thread reads what comes next while the present is worked on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """One thing that is being read, by one thread.

    What is not taken is dropped when something else is wanted, so no more than one thing is held.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._key: int | None = None
        self._found: Future[T] | None = None

    def start(self, key: int, read: Callable[[], T]) -> None:
        """Begin to read something, unless it is being read already."""
        if self._key == key:
            return
        self.drop()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relaxprune-read-ahead")
        self._key, self._found = key, self._thread.submit(read)

    def take(self, key: int) -> T | None:
        """Return what was read under a key, once it is; None if something else or nothing was.

        Raises:
            Exception: whatever reading raised.
        """
        if self._key != key or self._found is None:
            return None
        found, self._key, self._found = self._found, None, None
        return found.result()

    def close(self) -> None:
        """Forget what is being read, and let the thread end."""
        self.drop()
        if self._thread is not None:
            self._thread.shutdown()
        self._thread = None

    def drop(self) -> None:
        """Forget what is being read."""
        if self._found is not None and not self._found.cancel():
            self._found.exception()  # wait: two things must never be in memory
        self._key, self._found = None, None
