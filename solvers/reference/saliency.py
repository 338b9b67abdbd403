"""One-shot masks: keep the most salient weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from relaxprune.problems import Problem

from ..base import JUDGED_MATRICES, Answer, Published, Run, Solver
from ..driver import Band, Driver


@dataclass(frozen=True)
class SaliencySolver(Solver):
    """Round a score: one sort, faster than any time limit."""

    default_polish: ClassVar[str | None] = None
    published: ClassVar[Published] = Published(plain=True)
    honours: ClassVar[frozenset[str]] = frozenset({"time_limit_s"})
    couples_rows: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        """Refuse a problem that has no such saliency."""
        problem.check_saliency(self.name, f"solver {self.name!r}", "use fw or fista, which need none")

    def run(self, problem: Problem, run: Run) -> Answer:
        """Keep the entries with the largest score, ties by the lowest column."""

        def rounded(band: Band[Problem]) -> Answer:
            assert isinstance(band.rows, slice)
            return Answer(band.problem.polytope.round(self.score(problem, band.rows)))

        return Driver(self.name, run, problem.split(JUDGED_MATRICES, run.memory_bytes)).sweep(rounded)

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return 0: there are no iterations."""
        return 0

    def score(self, problem: Problem, rows: slice) -> Tensor:
        """Return the score of some rows to round: (R, cols)."""
        return problem.score(self.name, rows=rows)


@dataclass(frozen=True)
class Magnitude(SaliencySolver):
    """Keep the largest |W|."""

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "keep the largest weights"


@dataclass(frozen=True)
class Wanda(SaliencySolver):
    """Keep the largest |W_ij| sqrt(G_jj) (Sun, Liu, Bair and Kolter, arXiv 2306.11695)."""

    name: ClassVar[str] = "wanda"
    summary: ClassVar[str] = "keep the largest weight times input norm"


@dataclass(frozen=True)
class RIA(SaliencySolver):
    """Keep the largest relative importance times activation (Zhang et al., ICLR 2024).

    Args:
        power: exponent of the activation norm: 0.5 as in RIA's code, 1 in SparseFW's text.
    """

    power: float = 0.5

    name: ClassVar[str] = "ria"
    summary: ClassVar[str] = "keep the largest relative importance and activation"

    def score(self, problem: Problem, rows: slice) -> Tensor:
        """Return RIA with this power."""
        return problem.score(self.name, self.power, rows)
