"""Every solver of relaxprune that improves with iterations, by its name."""

from __future__ import annotations

from typing import Any, ClassVar

from benchmark_utils.doublings import Doublings
from benchopt import BaseSolver

from relaxprune import solve


class Solver(BaseSolver):
    """``relaxprune.solve`` with a number of iterations; 0 of them is the mask that it starts from, Wanda's."""

    name = "relaxprune"
    requirements: ClassVar[list[str]] = ["pip::relaxprune"]
    sampling_strategy = "iteration"
    stopping_criterion = Doublings()
    parameters: ClassVar[dict[str, Any]] = {"solver": ["fw", "sparsefw", "swap", "dicg"], "polish": ["auto"]}

    def set_objective(self, problem: Any, **_arrays: Any) -> None:
        """Take the problem."""
        self.problem = problem

    def run(self, iterations: int) -> None:
        """Solve from scratch."""
        name = self.solver if iterations else "wanda"
        words = {"max_iterations": iterations, "polish": self.polish} if iterations else {}
        self.mask = solve(self.problem, name, throw=False, **words).mask

    def get_result(self) -> dict[str, Any]:
        """Return the mask, (rows, cols) bool, True = kept."""
        return {"mask": self.mask.numpy()}
