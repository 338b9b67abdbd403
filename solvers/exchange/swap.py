"""Exact 1-swap descent: exchange a kept and a pruned weight until no exchange of any pair helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from relaxprune.problems import Problem

from ..base import Answer, Run, Solver, block_bytes
from ..driver import Driver
from .engine.descent import descend, matrices


@dataclass(frozen=True)
class Swap(Solver):
    """1-swap descent in float64, per row, inside groups for N:M, and across rows if they share a count.

    Ends 1-swap optimal: no exchange of ALL pairs lowers a coupled block's objective by more than 1e-9 of it; if columns
    have counts too, no interchange of two rows and two columns of a tile does. Every move lowers the objective, so the
    mask is never worse than the start. For "at most" sets single prunings and restorings are moves too. Exchanges:
    SparseSwaps (arXiv 2512.10922); a quick search tries 16 candidates a side, and a row ends only after a search that
    excludes every other pair by a bound.
    """

    name: ClassVar[str] = "swap"
    summary: ClassVar[str] = "exact 1-swap descent from the start mask"
    default_polish: ClassVar[str | None] = None
    honours: ClassVar[frozenset[str]] = frozenset({"start", "max_iterations", "time_limit_s"})
    polishes: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = True
    monotone: ClassVar[bool] = True

    def least_bytes(self, problem: Problem) -> int:
        """Return the bytes of a descent of one coupled block."""
        return block_bytes(problem, matrices(problem))

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return 0: there are as many rounds as moves to make."""
        return 0

    def run(self, problem: Problem, run: Run) -> Answer:
        """Descend from ``run.start``; ``max_iterations`` bounds the rounds of a band of rows."""
        driver = Driver(self.name, run, problem.split(matrices(problem), run.memory_bytes))
        return driver.sweep(lambda band: descend(band, run.max_iterations))
