"""Iterated local search: minutes of search beyond one descent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.problems.checks import whole_number

from ..base import CHECK_EVERY, Answer, Counts, Run, Solver, Status, block_bytes
from ..driver import Band, Driver
from .engine.descent import descend, matrices
from .engine.local_search import MATRICES, LocalSearch


@dataclass(frozen=True)
class IteratedLocalSearch(Solver):
    """Kick a 1-swap optimum by up to 16 random exchanges, descend again, keep the better (Lourenço et al. 2003).

    All rows, in ``copies``, are one batch in float64; never worse than the start, and better the longer it may run:
    give ``time_limit_s``, or ``max_iterations`` rounds of exchanges (1000 if neither is given). A start from ``fw``'s
    mask ends lower than one from Wanda's. Exchanges stay inside rows (inside groups for N:M). For counts over the
    layer, or "at most", a descent by ``swap`` before the search (and the polish after it) moves the counts: without it
    the search ends 3 to 5 % higher, at counts that the start happens to have. Same seed, same rounds: same mask.
    CONVERGED means that no exchange exists.

    Args:
        copies: independent searches of each row.
    """

    copies: int = 8

    name: ClassVar[str] = "ils"
    summary: ClassVar[str] = "iterated local search from the start mask, for as long as it may run"
    default_polish: ClassVar[str | None] = "swap"
    default_iterations: ClassVar[int] = 1000
    honours: ClassVar[frozenset[str]] = frozenset({"start", "max_iterations", "time_limit_s"})
    monotone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        whole_number("copies", self.copies, 1)

    def check(self, problem: Problem) -> None:
        """Refuse sets in which an entry has several counts.

        Raises:
            RelaxPruneError: exchanges inside a row would break a count, as in transposable patterns.
        """
        if not problem.polytope.separable(problem.shape):
            raise RelaxPruneError(
                "solver 'ils' exchanges two entries of a row, which breaks counts over columns such as those of this "
                f"{problem.polytope.label} set; use fw"
            )

    def least_bytes(self, problem: Problem) -> int:
        """Return the bytes of the first descent on a coupled block, or of the copies of one row."""
        rows = problem.over(problem.polytope.loosened())
        return max(block_bytes(problem, matrices(problem)), block_bytes(rows, MATRICES * self.copies))

    def run(self, problem: Problem, run: Run) -> Answer:
        """Search from ``run.start``, or from where swap descent leads from it if rows share counts."""
        polytope = problem.polytope
        trades = polytope.rows_per_block(problem.shape) > 1 or polytope.is_at_most()
        descents = list(problem.split(matrices(problem), run.memory_bytes)) if trades else []
        searches = problem.over(polytope.loosened()).split(MATRICES * self.copies, run.memory_bytes)
        driver = Driver(self.name, run, descents, searches)
        begun = driver.sweep(lambda band: descend(band, None))
        begun.counts.iterations = 0
        group = polytope.group_size(problem.shape)
        return driver.sweep(lambda band: self._search(band, group, run.seed + band.number - len(descents)), begun)

    def _search(self, band: Band[Problem], group: int, seed: int) -> Answer:
        """Do rounds of exchanges in one band."""
        search = LocalSearch(band.problem, group, band.run.start, self.copies, seed)
        movable, limit, done = search.movable(), self._rounds(band.run), 0
        status = Status.ITERATION_LIMIT if movable else Status.CONVERGED
        while movable and done < limit:
            search.round()
            done += 1
            if done % CHECK_EVERY == 0:
                band.report(done, search.products)
            if band.run.expired():
                status = Status.TIME_LIMIT
                break
        if not search.finite:
            status = Status.NOT_FINITE
        return Answer(search.result(), status=status, counts=Counts(done, search.products, swaps=search.swaps))

    def _rounds(self, run: Run) -> float:
        """Return the most rounds of a band: any number if only time is limited."""
        if run.max_iterations is not None:
            return run.max_iterations
        return self.default_iterations if run.deadline is None else math.inf
