"""When a solver that improves with iterations is looked at: after 0, 10, 20, 40, … of them, however it goes between."""

from __future__ import annotations

from typing import Any

from benchopt.stopping_criterion import StoppingCriterion


class Doublings(StoppingCriterion):
    """A fixed number of runs, each with twice the iterations of the last.

    The host's own criteria end a solver that makes no progress for a few runs. Frank-Wolfe methods leave their start
    and come back below it, so that they would be ended where they are worst.

    Args:
        runs: number of runs after the one with 0 iterations; 9 are up to 2560.
        options: the host's.
    """

    def __init__(self, runs: int = 9, **options: Any) -> None:
        self.runs = runs
        super().__init__(runs=runs, **options)

    def check_convergence(self, objective_list: list[dict[str, Any]]) -> tuple[bool, float]:
        """Say whether all runs are done, and which share of them is."""
        done = len(objective_list) - 1
        return done >= self.runs, min(1.0, done / self.runs)

    def get_next_stop_val(self, stop_val: int) -> int:
        """Return the next number of iterations."""
        return max(10, 2 * stop_val)
