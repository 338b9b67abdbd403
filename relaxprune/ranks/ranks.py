"""What a run asks of the processes that share it, and the answers of a process that is alone."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError

from .sharing import longest_first

T = TypeVar("T")


class RankError(ConnectionError):
    """Another process of the run has died, hangs or has failed; its text is one sentence that names the rank."""

    def __init__(self, sentence: str) -> None:
        """Hold the sentence."""
        super().__init__(errno.ECONNABORTED, sentence)

    def __str__(self) -> str:
        """Return the sentence."""
        return str(self.strerror)


class Ranks:
    """The processes that share a run; this class is a process that is alone, to which nothing needs to be told.

    All of them call the same methods in the same order. What is told are trees of dicts with string keys, lists,
    tensors and plain values; a tuple arrives as a list, and a tensor on the CPU.

    Attributes:
        rank: number of this process, from 0; number 0 is the leader, which alone writes files.
        world: how many there are.
        silent: whether this process has nothing to say about how it ends, for another one does.
    """

    rank: int = 0
    world: int = 1
    silent: bool = False

    @property
    def leader(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world == 1

    def exchange(self, own: Any) -> list[Any]:
        """Tell all ranks something, and return what every rank tells, in the order of the ranks."""
        return [own]

    def broadcast(self, value: Any) -> Any:
        """Return what the leader tells; the other ranks' ``value`` is ignored."""
        return value

    def all_sum_(self, *tensors: Tensor) -> None:
        """Replace float64 tensors, of the same shapes on all ranks, by their sums, added in the order of the ranks."""

    def check(self, *_progress: object) -> None:
        """Raise RankError if another rank is known to have failed; takes what callbacks of solvers are given."""

    def from_leader(self, make: Callable[[], T]) -> T:
        """Return what the leader makes, a tree as above; the other ranks wait for it."""
        made: T = self.broadcast(make() if self.leader else None)
        return made

    def shares(self, costs: Sequence[float]) -> list[list[int]]:
        """Return for every rank the jobs that it does, by their numbers, from what each job is thought to cost."""
        return longest_first(costs, self.world)

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Refuse to go on unless facts, JSON values by what they are called, are the same on all ranks.

        Raises:
            RelaxPruneError: naming the first rank that differs from the leader, and in what.
        """
        told = self.exchange(dict(facts))
        for rank, other in enumerate(told):
            differing = [name for name in told[0] if other[name] != told[0][name]]
            if differing:
                raise RelaxPruneError(
                    f"all {self.world} ranks must have the same {' and '.join(differing)}, got another on rank {rank} "
                    "than on rank 0"
                )


ALONE = Ranks()
"""A process that shares its run with no other."""
