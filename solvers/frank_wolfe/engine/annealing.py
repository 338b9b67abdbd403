"""Annealed Frank-Wolfe on one band of rows: its state, its step and its line search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.problems.working import Quadratic

from ...state import GradientState

_ITERATIONS_PER_MOMENTUM = 300
_MEAN_WEIGHT = 3  # iterate k weighs about k^2 in the mean
_FULL_FROM = 0.9  # progress of the annealing from which no product is in a lower precision


@dataclass(frozen=True)
class Schedule:
    """The schedule of an annealing.

    Attributes:
        iterations: all iterations.
        convex: those of them before θ rises.
        momentum: weight of past vertices in the target at θ = 0, in [0, 1).
        smoothing: weight of past gradients in the oracle's input, in [0, 1).
        power: θ rises as this power of the share of the annealing done.
        gap_tolerance: relative Frank-Wolfe gap that ends the convex phase, or None.
    """

    iterations: int
    convex: int = 0
    momentum: float = 0.7
    smoothing: float = 0.3
    power: float = 1.0
    gap_tolerance: float | None = None


class Annealing(GradientState):
    """The relaxed mask m as m − ½, the half gradient of f_θ carried along, and the target of the steps.

    Args:
        problem: the working problem.
        start: (rows, cols) float, feasible.
        schedule: its schedule.
        tightening: (1, cols) or (rows, cols), the share of the diagonal that tightens the relaxation: θ begins there
            instead of at 0.
        concave: (rows, cols), what θ multiplies in f_θ(m) = f(m) + θ Σ concave m (1 − m); None is diag(Q).
        tilt: (rows, cols), added to the half gradient at the beginning, fading as θ rises: leads to other masks.
    """

    def __init__(
        self,
        problem: Quadratic,
        start: Tensor,
        schedule: Schedule,
        tightening: Tensor | None = None,
        concave: Tensor | None = None,
        tilt: Tensor | None = None,
    ) -> None:
        """Compute the half gradient at the start."""
        super().__init__(problem, start)  # from here on it is that of f_theta
        self.centred = start - 0.5  # (rows, cols)
        self.target = self.centred.clone()  # running mean of vertices, minus ½
        # Weighted mean of the convex phase's iterates: the better tangent point.
        self.mean: Tensor | None = self.centred.clone()
        self.tightening = tightening
        self.concave, self.tilt, self.schedule = concave, tilt, schedule
        if tilt is not None:
            self.half_gradient += tilt
        self.theta: float | Tensor = 0.0
        self.progress = 0.0  # of the annealing, 0 to 1
        if tightening is not None:
            self._anneal_to(problem, 0.0)
        self.smooth = self.half_gradient.clone()  # running mean of half gradients
        self.hint: Tensor | None = None  # of the oracle
        self.iterations, self.convex = schedule.iterations, schedule.convex
        self.gap_tolerance = schedule.gap_tolerance
        self.end_of_convex: Tensor | None = None
        self.exact = True  # whether no product of a lower precision is in the half gradient

    def point(self) -> Tensor:
        """Return m."""
        return self.centred + 0.5

    def relaxed(self) -> Tensor | None:
        """Return the mean iterate of the convex phase, so far if that is still running."""
        return self.end_of_convex if self.mean is None else self.mean + 0.5

    def may_leave(self) -> bool:
        """Return whether this is the last phase."""
        return self.mean is None or self.convex >= self.schedule.iterations

    def next_phase(self) -> bool:
        """End the convex phase now if annealing follows; that keeps its planned length."""
        if self.may_leave():
            return False
        self.iterations -= self.convex - self.iteration
        self.convex = self.iteration
        return True

    def _anneal_to(self, problem: Quadratic, progress: float) -> None:
        """Move the carried half gradient from f at the present θ to the next one: no product needed."""
        if self.tilt is not None:
            self.half_gradient.add_(self.tilt, alpha=self.progress - progress)
        self.progress = progress
        rise = progress**self.schedule.power
        theta = rise if self.tightening is None else self.tightening + rise * (1 - self.tightening)
        _add_scaled(self.half_gradient, self._concave(problem), self.centred, self.theta - theta)
        self.theta = theta

    def _concave(self, problem: Quadratic) -> Tensor:
        """Return what θ multiplies, (rows, cols)."""
        return problem.diagonal if self.concave is None else self.concave

    def refresh(self, problem: Quadratic) -> None:
        """Compute the half gradient of f_θ from scratch."""
        super().refresh(problem)
        _add_scaled(self.half_gradient, self._concave(problem), self.centred, -self.theta)
        if self.tilt is not None:
            self.half_gradient.add_(self.tilt, alpha=1 - self.progress)
        self.exact = True

    def make_exact(self, problem: Quadratic) -> None:
        """Recompute the half gradient if it contains products of a lower precision, so that it can be relied on."""
        if not self.exact:
            self.refresh(problem)

    def step(self, problem: Quadratic) -> None:
        """Take one Frank-Wolfe step, raising θ first when annealing."""
        self.refresh_when_due(problem)
        smoothing = momentum = 0.0
        if self.iteration >= self.convex:
            if self.mean is not None:
                self.end_of_convex, self.mean = self.mean + 0.5, None
            left = self.iterations - self.convex
            # A schedule that a gap tolerance cut short goes on at θ = 1 until a vertex is reached.
            self._anneal_to(problem, min(1.0, (self.iteration - self.convex + 1) / max(1, left)))
            smoothing = self.schedule.smoothing
            # A memory of vertices longer than the schedule would only lag behind it.
            momentum = min(self.schedule.momentum, self.iterations / _ITERATIONS_PER_MOMENTUM)
            momentum *= math.sqrt(1 - self.progress)
        self.smooth.lerp_(self.half_gradient, 1 - smoothing)
        vertex, self.hint = problem.polytope.near_lmo(self.smooth, self.hint)
        self.target.lerp_(vertex.sub_(0.5), 1 - momentum)
        if self.progress >= _FULL_FROM:
            self.make_exact(problem)
            problem = problem.full()
        self._move(problem, torch.sub(self.target, self.centred, out=vertex))
        self.iteration += 1
        if self.mean is not None:
            self.mean.lerp_(self.centred, _MEAN_WEIGHT / (self.iteration + _MEAN_WEIGHT - 1))

    def _move(self, problem: Quadratic, direction: Tensor) -> None:
        """Exact line search on f_θ along ``direction`` (rows, cols), per coupled block, and the step, in place."""
        polytope = problem.polytope
        image = problem.image(direction)
        self.product_count += 1
        self.exact = self.exact and problem.lowered is None
        _add_scaled(image, self._concave(problem), direction, -self.theta)
        slope = polytope.block_sum(torch.linalg.vecdot(self.half_gradient, direction))
        curvature = polytope.block_sum(torch.linalg.vecdot(image, direction))
        # If the line is not convex, the far end is best; a direction that ascends (a mean of old vertices may) is
        # skipped.
        step = torch.where(curvature > 0, (-slope / curvature).clamp(max=1), 1.0)
        step = polytope.to_rows(torch.where(slope < 0, step, 0.0), direction.shape[0])
        self.centred.addcmul_(direction, step)
        self.half_gradient.addcmul_(image, step)


def _add_scaled(total: Tensor, diagonal: Tensor, values: Tensor, factor: float | Tensor) -> None:
    """Add factor · diagonal ∘ values (rows, cols) to ``total``, in place; the factor is a number or a tensor."""
    if isinstance(factor, Tensor):
        total.addcmul_(diagonal * factor, values)
    elif factor:
        total.addcmul_(diagonal, values, value=factor)
