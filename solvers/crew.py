"""Processes that solve one problem together, each some bands of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Crew(Protocol):
    """Processes that call the same solver on the same problem at the same time.

    Attributes:
        rank: number of this process.
    """

    @property
    def rank(self) -> int:
        """Number of this process."""

    def shares(self, costs: Sequence[float]) -> list[list[int]]:
        """Return for every process the jobs that it does, from what each is thought to cost."""

    def exchange(self, own: Any) -> list[Any]:
        """Tell all processes a tree of dicts, lists, tensors and plain values, and return what each of them tells."""
