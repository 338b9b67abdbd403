"""Iterated local search: what minutes of search find beyond one descent."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar

from relaxprune.problems import Problem, RelaxPruneError

from ..base import (
    CHECK_EVERY,
    Answer,
    Progress,
    Run,
    Solver,
    Status,
    block_bytes,
    worse,
)
from .engine.descent import descend, matrices
from .engine.local_search import MATRICES, LocalSearch, loosened, separates


@dataclass(frozen=True)
class IteratedLocalSearch(Solver):
    """Kick a 1-swap optimum by up to 16 random exchanges, descend again, keep the better (Lourenço et al. 2003).

    All rows and ``copies`` of each are one batch in float64; never worse than the start, and better the longer it may
    run: give ``time_limit_s``, or ``max_iterations`` rounds of exchanges (1000 where neither is given). A start from
    ``fw``'s mask ends lower than one from Wanda's. Exchanges stay inside rows (inside groups for N:M). For counts over
    the layer, or "at most", a descent by ``swap`` before the search (and the polish after it) moves the counts: without
    it the search ends 3 to 5 % higher, at counts that the start happens to have. Same seed, same rounds: same mask.
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
        if isinstance(self.copies, bool) or not isinstance(self.copies, int) or self.copies < 1:
            raise RelaxPruneError(f"copies must be a whole number of at least 1, got {self.copies!r}")

    def check(self, problem: Problem) -> None:
        """Refuse sets in which an entry has several counts.

        Raises:
            RelaxPruneError: exchanges inside a row would break a count, as in transposable patterns.
        """
        if not separates(problem):
            raise RelaxPruneError(
                "solver 'ils' exchanges two entries of a row, which breaks counts over columns, as those of this "
                f"{problem.polytope.to_dict()['kind']} set; 'fw' fits"
            )

    def least_bytes(self, problem: Problem) -> int:
        """Return what the first descent takes of a coupled block, or the copies of one row."""
        return max(block_bytes(problem, matrices(problem)), block_bytes(loosened(problem), MATRICES * self.copies))

    def run(self, problem: Problem, run: Run) -> Answer:
        """Search from ``run.start``, block of rows by block of rows, sharing the time that is left evenly."""
        answer = self._begin(problem, run)
        start = answer.point.clone()
        group = problem.polytope.group_size(problem.shape)
        started = time.monotonic()
        pieces = list(loosened(problem).split(MATRICES * self.copies, run.memory_bytes))
        for number, (part, piece) in enumerate(pieces):
            search = LocalSearch(piece, group, start[part], self.copies, run.seed + number)
            limit, deadline = self._budget(run, len(pieces) - number)
            movable = search.movable()
            status, done = Status.ITERATION_LIMIT if movable else Status.CONVERGED, 0
            while movable and done < limit:
                search.round()
                done += 1
                if run.callback is not None and done % CHECK_EVERY == 0:
                    seconds = time.monotonic() - started
                    products, rows = int(search.products), part.stop - part.start
                    run.callback(Progress(self.name, number, len(pieces), done, products, rows, seconds))
                if deadline is not None and time.monotonic() >= deadline:
                    status = Status.TIME_LIMIT
                    break
            if search.finite:
                answer.point[part] = search.result()
            else:
                status = Status.NOT_FINITE
            answer.status = worse(answer.status, status)
            answer.counts.iterations = max(answer.counts.iterations, done)
            answer.counts.swaps += search.swaps
            answer.counts.products += search.products * (part.stop - part.start) / problem.shape[0]
        return answer

    @staticmethod
    def _begin(problem: Problem, run: Run) -> Answer:
        """Return the start, or, where rows may trade what they keep, where swap descent leads from it."""
        polytope = problem.polytope
        if polytope.rows_per_block(problem.shape) == 1 and not polytope.is_at_most():
            return Answer(run.start.clone())
        answer = descend(problem, replace(run, max_iterations=None))
        answer.counts.iterations = 0
        return answer

    def _budget(self, run: Run, pieces_left: int) -> tuple[float, float | None]:
        """Return the rounds and the deadline of the next block of rows."""
        if run.deadline is None:
            return (self.default_iterations if run.max_iterations is None else run.max_iterations), None
        now = time.monotonic()
        limit = float("inf") if run.max_iterations is None else run.max_iterations
        return limit, now + max(0.0, run.deadline - now) / pieces_left
