"""What the solvers with an explicit active set have in common: state, step and shift of weights."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Problem, Quadratic, RelaxPruneError, Working
from relaxprune.problems.checks import whole_number

from ...base import Run
from ...gap import within_gap
from ...loop import Budget, IterativeSolver
from ...state import FirstOrderState
from .active_set import FIRST_SLOTS, ActiveSet


@dataclass
class Move:
    """One step of every coupled block: along ``vertex`` − ``away`` or a mix, at most ``longest``.

    Attributes:
        direction: (blocks, entries).
        longest: (blocks,), the step at which a weight reaches 0 (or the vertex is reached).
        up, down: slots (blocks,) whose weight grows and shrinks.
        scale: (blocks,): weights are first multiplied by 1 + scale · step; −1 for Frank-Wolfe, 1 for away steps,
            otherwise 0.
    """

    direction: Tensor
    longest: Tensor
    up: Tensor
    down: Tensor
    scale: Tensor


class ActiveSetState(FirstOrderState):
    """The relaxed mask, its active set, and the half gradient carried along."""

    def __init__(self, problem: Working, start: Tensor, limit: int, gap_tolerance: float | None) -> None:
        """Begin at the vertex ``start`` (rows, cols)."""
        super().__init__(problem, start)
        self.blocks = problem.polytope.block_count(problem.shape)
        self.active = ActiveSet(start.reshape(self.blocks, -1), limit)
        self.gap_tolerance = gap_tolerance
        self.outgrown = False

    def full(self) -> bool:
        """Return whether the active set has no room for another vertex."""
        return self.outgrown

    def select(self, index: Tensor) -> None:
        """Keep the rows in ``index``, each a coupled block of its own."""
        super().select(index)
        self.active.select(index)
        self.blocks = len(index)

    def refresh(self, problem: Quadratic) -> None:
        """Compute point and half gradient from scratch."""
        self.mask = self.active.point().view(self.mask.shape)
        super().refresh(problem)


@dataclass(frozen=True)
class ActiveSetSolver(IterativeSolver[ActiveSetState]):
    """Frank-Wolfe variants that store the vertices they combine: a subclass chooses the move.

    One matrix product per iteration, and one pass over the active vertices, which soon costs more: for small and medium
    problems, and as a reference. ``active_bytes`` bounds the vertices of a band of rows, one byte an entry: rows are
    split so that a vertex per iteration fits, and only a coupled block too large for that can end in MEMORY_LIMIT.
    """

    active_bytes: int = 2**30

    default_iterations: ClassVar[int] = 2000
    honours: ClassVar[frozenset[str]] = IterativeSolver.honours | {"gap_tolerance"}
    monotone: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        whole_number("active_bytes", self.active_bytes, 1)

    def check(self, problem: Problem) -> None:
        """Refuse a coupled block whose first few vertices already exceed ``active_bytes``."""
        height = problem.polytope.rows_per_block(problem.shape)
        needed = FIRST_SLOTS * height * problem.shape[1]
        if needed > self.active_bytes:
            raise RelaxPruneError(
                f"active_bytes is {self.active_bytes}, but the first {FIRST_SLOTS} vertices of a coupled block of "
                f"{height} x {problem.shape[1]} take {needed} bytes; raise it, or use dicg, which stores no active set"
            )

    def row_budget(self, problem: Problem, run: Run) -> int:
        """Limit a band of rows by its active set too, which may gain a vertex in every iteration."""
        iterations = self.default_iterations if run.max_iterations is None else run.max_iterations
        entries = self.active_bytes // max(FIRST_SLOTS, iterations + 2)
        return min(run.memory_bytes, 8 * self.wide() * entries)

    @abstractmethod
    def choose(self, state: ActiveSetState, half_gradient: Tensor, vertex: Tensor) -> Move:
        """Return the move of each block.

        Args:
            state: the state; its active set may take in ``vertex``.
            half_gradient: (blocks, entries).
            vertex: (blocks, entries), the oracle's answer to it.
        """

    def init(self, problem: Working, start: Tensor, budget: Budget) -> ActiveSetState:
        """Start at a feasible mask, the only active vertex."""
        return ActiveSetState(problem, start, self.active_bytes, budget.gap_tolerance)

    def step(self, problem: Working, state: ActiveSetState) -> None:
        """Search exactly along the chosen move and shift the weights; those that reach 0 leave the set."""
        state.refresh_when_due(problem)
        half = state.half_gradient.view(state.blocks, -1)
        move = self.choose(state, half, problem.polytope.lmo(state.half_gradient).view(state.blocks, -1))
        image = problem.image(move.direction.view(state.mask.shape)).view(state.blocks, -1)
        slope, curvature = torch.linalg.vecdot(half, move.direction), torch.linalg.vecdot(image, move.direction)
        # Comparisons are written so that NaN passes through to the point, where the loop sees it.
        best = torch.where(curvature <= 0, torch.inf, -slope / curvature)
        step = torch.where(slope >= 0, 0.0, torch.minimum(best, move.longest))
        shift(state.active.weights, move, step)
        state.mask.view(state.blocks, -1).addcmul_(move.direction, step.unsqueeze(1))
        half.addcmul_(image, step.unsqueeze(1))
        state.product_count += 1
        state.iteration += 1
        state.outgrown = not state.active.ready()

    def done(self, problem: Working, state: ActiveSetState) -> Tensor:
        """Return which blocks are within the gap tolerance."""
        state.active.trim()
        return within_gap(problem, state.mask, state.half_gradient, state.gap_tolerance)


def shift(weights: Tensor, move: Move, step: Tensor) -> None:
    """Move ``weights`` (slots, blocks) by ``step`` (blocks,), in place; a step of full length leaves exact zeros."""
    line = torch.arange(len(step), device=step.device)
    weights *= (1 + move.scale * step).clamp_min(0)
    full = (step >= move.longest) & (step > 0)
    weights[move.up, line] += torch.where(move.scale > 0, 0.0, step)
    left = (weights[move.down, line] - torch.where(move.scale < 0, 0.0, step)).clamp_min(0)
    weights[move.down, line] = torch.where(full & (move.scale >= 0), 0.0, left)
