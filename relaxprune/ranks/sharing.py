"""How work is divided among ranks: the same division on every rank, from nothing but what all of them know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_PASSES = 512  # columns whose product takes as long as the passes over a layer's entries beside it


def layer_cost(shape: tuple[int, int]) -> float:
    """Return what solving a layer of (rows, cols) is thought to cost: one iteration's product and selection."""
    # Only proportions count, the same on all ranks. ``relaxprune.costs`` predicts seconds: from trials of the solver
    # and from rates of the machine, in which ranks differ.
    rows, cols = shape
    return float(rows) * cols * (cols + _PASSES)


@dataclass
class Loads:
    """The work that every rank has been given so far.

    Attributes:
        loads: the sum of the costs of each rank's jobs.
    """

    loads: list[float] = field(default_factory=list)

    def give(self, cost: float) -> int:
        """Give a job to the rank with the least work, of several the first; returns the rank."""
        rank = min(range(len(self.loads)), key=self.loads.__getitem__)
        self.loads[rank] += cost
        return rank


def longest_first(costs: Sequence[float], world: int) -> list[list[int]]:
    """Divide jobs, the longest first, each to the rank with the least work (Graham 1969).

    The longest sum of costs is at most 4/3 - 1/(3 world) times the least possible one.

    Args:
        costs: what each job is thought to cost.
        world: number of ranks.

    Returns:
        For each rank the numbers of its jobs, ascending.
    """
    loads = Loads([0.0] * world)
    given: list[list[int]] = [[] for _ in range(world)]
    for job in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        given[loads.give(costs[job])].append(job)
    return [sorted(jobs) for jobs in given]


def even_part(count: int, rank: int, world: int) -> slice:
    """Return which of ``count`` items in a row a rank has, if all have the same number, up to one more for the first.

    Ranks beyond ``count`` have none.
    """
    each, more = divmod(count, world)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))
