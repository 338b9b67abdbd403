"""The one loop under every iterative solver: iterations, checks of the state, rows that leave, refining."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from relaxprune.problems import Problem, Working
from relaxprune.problems.checks import one_of

from .base import CHECK_EVERY, DTYPES, Answer, Counts, Run, Solver, Status, block_bytes, worse
from .driver import Band, Driver
from .state import State

NEGLIGIBLE = 1e-18  # of the mean diagonal: entries too small to matter to any mask
_SCALING_MATRICES = 2

S = TypeVar("S", bound=State)
T = TypeVar("T")


class Shared:
    """Values that all bands of a run use, by their type; the first band that needs one computes it."""

    def __init__(self) -> None:
        self._made: dict[type, object] = {}

    def get(self, kind: type[T], make: Callable[[], T]) -> T:
        """Return the value of this type, computed on first use."""
        value = self._made.get(kind)
        if not isinstance(value, kind):
            value = self._made[kind] = make()
        return value


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the iterations on one band of rows may take.

    Attributes:
        iterations: iterations of the loop.
        total: iterations of the loop and of refining.
        gap_tolerance: relative Frank-Wolfe gap at which a convex phase ends, or None.
        memory_bytes: bound on temporaries.
        bands: number of bands of rows.
        shared: what a solver computes once for all of them.
        tightening: (cols,) float64, what tightens the relaxation, or None.
    """

    iterations: int
    total: int
    gap_tolerance: float | None
    memory_bytes: int
    bands: int
    shared: Shared = field(default_factory=Shared)
    tightening: Tensor | None = None

    @classmethod
    def of(cls, solver: IterativeSolver[Any], run: Run, bands: int = 1, shared: Shared | None = None) -> Budget:
        """Return what ``run`` grants each of its bands."""
        total = solver.iterations() if run.max_iterations is None else run.max_iterations
        return cls(
            iterations=solver.before_refining(total),
            total=total,
            gap_tolerance=run.gap_tolerance,
            memory_bytes=run.memory_bytes,
            bands=bands,
            shared=Shared() if shared is None else shared,
            tightening=run.tightening,
        )


@dataclass
class Refined:
    """What refining one band of rows found.

    Attributes:
        mask: (rows, cols) bool, feasible.
        counts: what it cost; products in matrices of this band.
        status: how it ended.
    """

    mask: Tensor
    counts: Counts
    status: Status


@dataclass(frozen=True)
class IterativeSolver(Solver, Generic[S]):
    """A solver made of ``init``, ``step`` and ``done``; the loop is here, once.

    CONVERGED means that every coupled block was ``done``, at the latest after the last iteration; otherwise the status
    is ITERATION_LIMIT, or that of the budget that ended first. A solver whose ``done`` looks at
    ``budget.gap_tolerance`` adds it to ``honours``.

    Args:
        dtype: ``"float32"`` or ``"float64"``, what the iterations compute in.
    """

    dtype: str = "float32"
    default_iterations: ClassVar[int] = 200
    honours: ClassVar[frozenset[str]] = frozenset({"start", "max_iterations", "time_limit_s"})  # the loop's own
    matrices: ClassVar[int] = 10  # (rows, cols) tensors held at once, for the memory budget

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        one_of("dtype", self.dtype, DTYPES)

    def working(self, problem: Problem) -> Working:
        """Return the copy of ``problem`` that the iterations compute with."""
        return problem.working(getattr(torch, self.dtype))

    @abstractmethod
    def init(self, problem: Working, start: Tensor, budget: Budget) -> S:
        """Return the state at a feasible mask ``start`` (rows, cols), float."""

    @abstractmethod
    def step(self, problem: Working, state: S) -> None:
        """Do one iteration, in place, without waiting for the device."""

    @abstractmethod
    def done(self, problem: Working, state: S) -> Tensor:
        """Return which coupled blocks are done: (blocks,) bool, without waiting for the device.

        Called every ``CHECK_EVERY`` iterations. A state with several phases is asked about the present one.
        """

    def before_refining(self, iterations: int) -> int:
        """Return how many of all iterations the loop gets; the others are for ``refine``."""
        return iterations

    def refine(self, band: Band[Problem], working: Working, point: Tensor, budget: Budget) -> Refined | None:
        """Improve ``point`` (rows, cols), where the iterations on one band ended, or return None to leave it."""
        return None

    def iterations(self) -> int:
        """Return how many iterations a band of rows gets by default."""
        return self.default_iterations

    def planned_iterations(self, max_iterations: int | None) -> int | None:
        """Return the iterations if nothing ends them early."""
        return self.iterations() if max_iterations is None else max_iterations

    def wide(self) -> int:
        """Return how many float64 tensors of the problem's shape a solve holds.

        Scaling passes through float64, and the iterations hold ``matrices`` tensors of their own dtype.
        """
        dtype: torch.dtype = getattr(torch, self.dtype)
        return _SCALING_MATRICES + self.matrices * dtype.itemsize // 8

    def least_bytes(self, problem: Problem) -> int:
        """Return the size of ``wide`` tensors of one coupled block."""
        return block_bytes(problem, self.wide())

    def row_budget(self, problem: Problem, run: Run) -> int:
        """Return how many bytes the ``wide`` tensors of a band of rows may take."""
        return run.memory_bytes

    def bands(self, problem: Problem, run: Run) -> int:
        """Return the number of bands that fit the memory budget."""
        return len(list(problem.split(self.wide(), self.row_budget(problem, run))))

    def run(self, problem: Problem, run: Run) -> Answer:
        """Iterate on bands of rows, so that temporaries stay within the memory budget."""
        shared = Shared()
        driver = Driver(self.name, run, problem.split(self.wide(), self.row_budget(problem, run)))
        answer = driver.sweep(lambda band: self._solve(band, Budget.of(self, band.run, band.count, shared)))
        answer.tightening = run.tightening
        return answer

    def _solve(self, band: Band[Problem], budget: Budget) -> Answer:
        """Iterate on one band, and refine the result."""
        loop = _Loop(self, band, budget)
        loop.go()
        if not loop.status.failed:
            loop.take(self.refine(band, loop.whole, loop.out, budget))
        return loop.answer()


class _Loop(Generic[S]):
    """Runs one band of rows to its end; coupled blocks that converged leave the batch."""

    def __init__(self, solver: IterativeSolver[S], band: Band[Problem], budget: Budget) -> None:
        self.solver, self.band, self.budget = solver, band, budget
        self.whole = self.working = solver.working(band.problem)
        start = band.run.start.to(getattr(torch, solver.dtype))
        self.state = solver.init(self.working, start, budget)
        self.rows = len(start)
        self.active = torch.arange(self.rows, device=start.device)
        self.out, self.out_relaxed = start.clone(), start.clone()
        self.has_relaxed = False
        self.counts = Counts()
        self.status = Status.ITERATION_LIMIT

    def go(self) -> None:
        """Iterate until converged or out of budget."""
        counted = 0
        for iteration in range(1, self.budget.iterations + 1):
            self.solver.step(self.working, self.state)
            self.counts.iterations = iteration
            last = iteration == self.budget.iterations or self.state.full()
            if last or iteration % CHECK_EVERY == 0:
                finished = self.solver.done(self.working, self.state)  # which may take a product
                products = self.state.product_count
                self.counts.products += (products - counted) * len(self.active) / self.rows
                counted = products
                if self._look(finished):
                    break
        self._keep(self.active, torch.arange(len(self.active), device=self.active.device))

    def _look(self, finished: Tensor) -> bool:
        """Check the state (finite, converged, in time) and return whether to stop. Waits for the device once."""
        finite, count = torch.stack([self.state.finite().to(torch.long), finished.sum()]).tolist()
        if not finite:
            self.status = Status.NOT_FINITE
            self.active = self.active[:0]  # a broken state is dropped: the start stays in the output
            return True
        remaining = len(finished) - count
        self.band.report(self.counts.iterations, self.counts.products, remaining)
        if not remaining and not self.state.next_phase():
            self.status = Status.CONVERGED
            return True
        if self.state.full():
            self.status = Status.MEMORY_LIMIT
            return True
        # Copying costs about one pass, so rows leave once they are a quarter of the batch. Rows that share a count
        # never leave alone.
        if self.state.may_leave() and len(finished) == len(self.active) and 4 * count >= len(finished):
            self._compact(finished, remaining)
        if self.band.run.expired():
            self.status = Status.TIME_LIMIT
            return True
        return False

    def _compact(self, finished: Tensor, remaining: int) -> None:
        """Drop finished rows; the number of the others is known, so nothing waits for the device."""
        stay, leave = finished.to(torch.uint8).argsort(stable=True).tensor_split([remaining])
        self._keep(self.active[leave], leave)
        self.active = self.active[stay]
        self.working = self.working.select(stay)
        self.state.select(stay)

    def _keep(self, rows: Tensor, index: Tensor) -> None:
        """Copy the state's rows ``index`` to the output's ``rows``."""
        if not len(rows):
            return
        self.out[rows] = self.state.point()[index]
        relaxed = self.state.relaxed()
        if relaxed is not None:
            self.has_relaxed = True
            self.out_relaxed[rows] = relaxed[index]

    def take(self, refined: Refined | None) -> None:
        """Replace the point that the iterations ended at with a refined mask."""
        if refined is None:
            return
        self.out = refined.mask
        self.counts.iterations += refined.counts.iterations
        self.counts.products += refined.counts.products
        self.counts.swaps, self.counts.swap_rounds = refined.counts.swaps, refined.counts.swap_rounds
        if self.status is Status.ITERATION_LIMIT or refined.status is not Status.ITERATION_LIMIT:
            ended = Status.CONVERGED if self.status is Status.ITERATION_LIMIT else self.status
            self.status = worse(ended, refined.status)

    def answer(self) -> Answer:
        """Return the answer of the band."""
        return Answer(self.out, self.out_relaxed if self.has_relaxed else None, self.status, self.counts)
