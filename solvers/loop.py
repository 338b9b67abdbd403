"""The one loop that owns budgets, checks, callbacks and history for all iterative solvers."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError, Working

from .base import (
    CHECK_EVERY,
    DEFAULT_MEMORY_BYTES,
    Answer,
    Counts,
    Progress,
    Run,
    Solver,
    Status,
    block_bytes,
    worse,
)


class State(ABC):
    """What an iterative solver carries: its tensors have one line per row of the problem."""

    @abstractmethod
    def select(self, index: Tensor) -> None:
        """Keep only the rows in ``index``, in place."""

    @abstractmethod
    def point(self) -> Tensor:
        """Return the relaxed mask now, (rows, cols)."""

    def finite(self) -> Tensor:
        """Return whether the computation has stayed in the finite numbers, as a tensor of one bool.

        Every floating tensor that the state holds is looked at: NaN anywhere is a failure, and so is an infinity in
        what has a number per entry, as points and gradients have. What has one per coupled block may say "none yet" by
        an infinity.
        """
        point = self.point()
        held = [value for value in vars(self).values() if isinstance(value, Tensor) and value.is_floating_point()]
        sound = []
        for value in (value for value in (point, *held) if value.numel()):
            ends = torch.stack(value.aminmax())  # one pass, and NaN comes through
            sound.append((torch.isfinite(ends) if value.shape == point.shape else ~torch.isnan(ends)).all())
        return torch.stack(sound).all()

    def full(self) -> bool:
        """Tell whether the state has no memory left to go on, without waiting for the device."""
        return False

    def next_phase(self) -> bool:
        """Go on to the next phase, where there is one, once every coupled block is done with this one."""
        return False

    def may_leave(self) -> bool:
        """Tell whether blocks that are done may leave now, or wait for the others to go on to the next phase."""
        return True

    @abstractmethod
    def relaxed(self) -> Tensor | None:
        """Return the relaxed mask at the end of the convex phase, (rows, cols), or None before that."""


NEGLIGIBLE = 1e-18  # of the mean diagonal: entries that no mask can feel
TIGHTENING = "tightening"  # where ``Plan.shared`` holds what tightened the relaxation
_SCALING_MATRICES = 2

S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class IterativeSolver(Solver, Generic[S]):
    """A solver made of ``init``, ``step`` and ``done``; the loop is here, once.

    CONVERGED means that ``done`` said so of every coupled block, be it when the last iteration was over; else the
    status is ITERATION_LIMIT, or that of the budget that ended first. A ``done`` that looks at ``plan.gap_tolerance``
    adds it to ``honours``.

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
        if self.dtype not in ("float32", "float64"):
            raise RelaxPruneError(f'dtype must be "float32" or "float64", got {self.dtype!r}')

    def working(self, problem: Problem) -> Working:
        """Return the copy of ``problem`` that the iterations compute with."""
        return problem.working(getattr(torch, self.dtype))

    @abstractmethod
    def init(self, problem: Working, start: Tensor, plan: Plan) -> S:
        """Return the state at a feasible mask ``start`` (rows, cols), float."""

    @abstractmethod
    def step(self, problem: Working, state: S) -> None:
        """Do one iteration, in place, without waiting for the device."""

    @abstractmethod
    def done(self, problem: Working, state: S) -> Tensor:
        """Return which coupled blocks are done: (blocks,) bool, without waiting for the device.

        Called every ``CHECK_EVERY`` iterations. A state with several phases is asked about the present one.
        """

    @abstractmethod
    def products(self, state: S) -> int:
        """Return the matrix products done so far for the rows in ``state``."""

    def before_refining(self, iterations: int) -> int:
        """Return how many of all iterations are the loop's; the others are for ``refine``."""
        return iterations

    def refine(self, problem: Problem, working: Working, point: Tensor, plan: Plan) -> Refined | None:
        """Improve what the iterations of one block of rows ended at (rows, cols), or leave it."""
        return None

    def iterations(self) -> int:
        """Return how many iterations a block of rows gets where the caller names no number."""
        return self.default_iterations

    def planned_iterations(self, max_iterations: int | None) -> int | None:
        """Return the iterations where nothing ends them early."""
        return self.iterations() if max_iterations is None else max_iterations

    def wide(self) -> int:
        """Return the float64 tensors of the problem's shape that a solve amounts to.

        Scaling passes through float64, and the iterations hold ``matrices`` tensors of their own dtype.
        """
        dtype: torch.dtype = getattr(torch, self.dtype)
        return _SCALING_MATRICES + self.matrices * dtype.itemsize // 8

    def least_bytes(self, problem: Problem) -> int:
        """Return the size of ``wide`` tensors of one coupled block."""
        return block_bytes(problem, self.wide())

    def row_budget(self, problem: Problem, run: Run) -> int:
        """Return the bytes that ``wide`` tensors of a block of rows may take."""
        return run.memory_bytes

    def run(self, problem: Problem, run: Run) -> Answer:
        """Solve block of rows by block of rows, so that temporaries stay within the memory budget."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        started = time.monotonic()
        pieces = list(problem.split(self.wide(), self.row_budget(problem, run)))
        shared: dict[str, Any] = {} if run.tightening is None else {TIGHTENING: run.tightening}
        answer, refines = Answer(run.start.to(dtype, copy=True)), False
        for number, (part, piece) in enumerate(pieces):
            share = (part.stop - part.start) / problem.shape[0]
            plan = replace(Plan.of(self, run, number, len(pieces), started), shared=shared)
            loop = _Loop(self, piece, run.start[part], plan, dtype)
            loop.go()
            refined = None if loop.status.failed else self.refine(piece, loop.whole, loop.out, plan)
            if refined is not None:
                refines = True
                loop.take(refined, run.start[part])
                answer.counts.swaps += refined.counts.swaps
                answer.counts.swap_rounds += refined.counts.swap_rounds
            loop.store(answer, part)
            answer.counts.iterations = max(answer.counts.iterations, loop.iterations)
            answer.counts.products += loop.row_products * share
            answer.status = worse(answer.status, loop.status)
        answer.tightening = shared.get(TIGHTENING)
        if refines:  # what broke down has its start, a mask as well
            answer.point = answer.point > 0.5
        return answer


@dataclass(frozen=True)
class Plan:
    """The budgets of one block of rows, and what all blocks of rows of a run share.

    Attributes:
        iterations: of the loop.
        total: these and those of refining.
        shared: empty at the start of a run; for what a solver prepares once.
    """

    iterations: int
    total: int
    gap_tolerance: float | None
    deadline: float | None
    row_block: int
    row_blocks: int
    started: float
    callback: Callable[[Progress], None] | None
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    seed: int = 0
    shared: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, solver: IterativeSolver[Any], run: Run, number: int, count: int, started: float) -> Plan:
        """Share the time that is left evenly among the blocks of rows still to do."""
        total = solver.iterations() if run.max_iterations is None else run.max_iterations
        deadline = run.deadline
        if deadline is not None:
            now = time.monotonic()
            deadline = now + max(0.0, deadline - now) / (count - number)
        return cls(
            solver.before_refining(total),
            total,
            run.gap_tolerance,
            deadline,
            number,
            count,
            started,
            run.callback,
            run.memory_bytes,
            run.seed,
        )

    def report(self, solver: str, iterations: int, products: float, remaining: int) -> None:
        """Tell the caller's callback, if there is one, how far this block of rows is."""
        if self.callback is not None:
            seconds = time.monotonic() - self.started
            self.callback(
                Progress(solver, self.row_block, self.row_blocks, iterations, int(products), remaining, seconds)
            )


@dataclass
class Refined:
    """What refining one block of rows found.

    Attributes:
        mask: (rows, cols) bool, feasible.
        counts: what it cost; products in matrices of this block of rows.
        status: how it ended.
    """

    mask: Tensor
    counts: Counts
    status: Status


class _Loop(Generic[S]):
    """Runs one block of rows to its end; coupled blocks that converged leave the batch."""

    def __init__(
        self, solver: IterativeSolver[S], problem: Problem, start: Tensor, plan: Plan, dtype: torch.dtype
    ) -> None:
        self.solver, self.plan = solver, plan
        self.whole = self.working = solver.working(problem)
        self.rows = problem.shape[0]
        self.state = solver.init(self.working, start.to(dtype), plan)
        self.active = torch.arange(self.rows, device=start.device)
        self.out = start.to(dtype, copy=True)
        self.out_relaxed = start.to(dtype, copy=True)
        self.has_relaxed = False
        self.iterations = 0
        self.row_products = 0.0
        self.status = Status.ITERATION_LIMIT

    def go(self) -> None:
        """Iterate until converged or out of budget."""
        counted = 0
        for iteration in range(1, self.plan.iterations + 1):
            self.solver.step(self.working, self.state)
            self.iterations = iteration
            last = iteration == self.plan.iterations or self.state.full()
            if last or iteration % CHECK_EVERY == 0:
                finished = self.solver.done(self.working, self.state)  # which may take a product
                products = self.solver.products(self.state)
                self.row_products += (products - counted) * len(self.active) / self.rows
                counted = products
                if self._look(finished, products):
                    break
        self._keep(self.active, torch.arange(len(self.active), device=self.active.device))

    def _look(self, finished: Tensor, products: int) -> bool:
        """Check the state: finite, converged, in time. Returns whether to stop. Waits for the device once."""
        plan = self.plan
        finite, count = torch.stack([self.state.finite().to(torch.long), finished.sum()]).tolist()
        if not finite:
            self.status = Status.NOT_FINITE
            self.active = self.active[:0]  # nothing of a broken state is kept: the start stays in the output
            return True
        remaining = len(finished) - count
        plan.report(self.solver.name, self.iterations, products, remaining)
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
        if plan.deadline is not None and time.monotonic() >= plan.deadline:
            self.status = Status.TIME_LIMIT
            return True
        return False

    def _compact(self, finished: Tensor, remaining: int) -> None:
        """Let finished rows leave; the number of the others is known, so nothing waits for the device."""
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

    def take(self, refined: Refined, start: Tensor) -> None:
        """Put a refined mask in place of the point that the iterations ended at, or the start where it broke down."""
        self.out.copy_(start if refined.status.failed else refined.mask)
        self.iterations += refined.counts.iterations
        self.row_products += refined.counts.products
        if self.status is Status.ITERATION_LIMIT or refined.status is not Status.ITERATION_LIMIT:
            ended = Status.CONVERGED if self.status is Status.ITERATION_LIMIT else self.status
            self.status = worse(ended, refined.status)

    def store(self, answer: Answer, part: slice) -> None:
        """Put this block's rows into the whole answer."""
        answer.point[part] = self.out
        if self.has_relaxed:
            if answer.relaxed is None:
                answer.relaxed = answer.point.clone()  # a block of rows that broke down has its start there
            answer.relaxed[part] = self.out_relaxed
