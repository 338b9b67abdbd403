"""FISTA: accelerated projected gradient on the relaxation, for sets with a projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Problem, Quadratic, RelaxPruneError, Working

from ..gap import within_gap
from ..loop import NEGLIGIBLE, Budget, IterativeSolver
from ..state import FirstOrderState

_RAISE = 1.1  # a rejected step bound becomes this much more than the curvature that refuted it
_LOWER = 0.7  # and is lowered to this share at a restart: the curvature met near the end may be less than the largest


class FistaState(FirstOrderState):
    """The feasible mask x, the extrapolated point v, and the half gradients at both, carried along."""

    def __init__(self, problem: Working, start: Tensor, metric: Tensor | None, gap_tolerance: float | None) -> None:
        """Begin at ``start`` (rows, cols); ``metric`` (rows, cols) is the diagonal D of the norm, None the identity."""
        self.metric = metric
        super().__init__(problem, start)
        self.ahead, self.ahead_half = self.mask.clone(), self.half_gradient.clone()
        blocks = problem.polytope.block_count(problem.shape)
        self.bound = torch.ones(blocks, dtype=start.dtype, device=start.device)  # L: Q ≼ L D along the steps taken
        self.momentum = torch.ones_like(self.bound)  # t
        self.gap_tolerance = gap_tolerance

    def refresh(self, problem: Quadratic) -> None:
        """Compute the half gradient at x from scratch, and move the one at v by the same correction."""
        drifted = self.half_gradient
        super().refresh(problem)
        self.ahead_half += self.half_gradient - drifted


@dataclass(frozen=True)
class Fista(IterativeSolver[FistaState]):
    """Accelerated projected gradient with backtracking and adaptive restart, on the plain relaxation.

    FISTA (Beck and Teboulle, SIAM J. Imaging Sciences 2, 2009) in the norm of D = diag(Q), for which the projection is
    a weighted one: Diag(w) G Diag(w) then has the condition of the inputs' correlations, whatever the sizes of weights
    and inputs. The step 1 / L is per coupled block and found by backtracking: the product that the next half gradient
    needs anyway gives the curvature along the step, while power iteration would underestimate L. Momentum restarts when
    it points uphill (O'Donoghue and Candès, Foundations of Computational Mathematics 15, 2015). One matrix product per
    iteration, rejected steps included. The last iterate is rounded; polish it with swap.

    Args:
        dtype: ``"float32"`` or ``"float64"``.
        scaled: False measures steps in the plain norm.
    """

    scaled: bool = True

    name: ClassVar[str] = "fista"
    summary: ClassVar[str] = "accelerated projected gradient on the relaxation"
    couples_rows: ClassVar[bool] = True
    default_iterations: ClassVar[int] = 200
    honours: ClassVar[frozenset[str]] = IterativeSolver.honours | {"gap_tolerance"}
    matrices: ClassVar[int] = 22  # the projection works in float64

    def check(self, problem: Problem) -> None:
        """Refuse a set without a projection."""
        if not problem.polytope.projects():
            raise RelaxPruneError(
                f"solver 'fista' needs a projection, which a {problem.polytope.label} set does not have; "
                "use fw, which needs only a linear oracle"
            )

    def init(self, problem: Working, start: Tensor, budget: Budget) -> FistaState:
        """Start at a feasible mask."""
        metric = None
        if self.scaled:
            metric = torch.where(problem.diagonal > NEGLIGIBLE, problem.diagonal, 0.0)
        return FistaState(problem, start, metric, budget.gap_tolerance)

    def step(self, problem: Working, state: FistaState) -> None:
        """Project a gradient step from v; blocks whose curvature refutes L only raise it."""
        state.refresh_when_due(problem)
        polytope, rows = problem.polytope, problem.shape[0]
        scale = polytope.to_rows(state.bound, rows)
        if state.metric is not None:
            scale = torch.where(state.metric > 0, scale * state.metric, torch.inf)
        found = polytope.project(state.ahead - state.ahead_half / scale, state.metric)
        direction = found - state.ahead
        half = problem.image(direction)
        curvature = polytope.block_sum(torch.linalg.vecdot(half, direction))
        half += state.ahead_half
        size = polytope.block_sum(torch.linalg.vecdot(direction, _scaled(direction, state.metric)))
        raised = _RAISE * curvature / size
        # A step along entries of zero metric has no size: only rounding refutes it.
        fits = (curvature <= state.bound * size) | ~torch.isfinite(raised)
        state.bound = torch.where(fits, state.bound, raised)
        _advance(problem, state, (found, half, direction), fits)
        state.iteration += 1
        state.product_count += 1

    def done(self, problem: Working, state: FistaState) -> Tensor:
        """Return which blocks are within the gap tolerance."""
        return within_gap(problem, state.mask, state.half_gradient, state.gap_tolerance)


def _scaled(values: Tensor, metric: Tensor | None) -> Tensor:
    """Return D values."""
    return values if metric is None else metric * values


def _advance(problem: Working, state: FistaState, step: tuple[Tensor, Tensor, Tensor], fits: Tensor) -> None:
    """Move x to the point found, if the step fits, and v beyond it by the momentum.

    Args:
        problem: the working problem.
        state: changed in place.
        step: the point found, the half gradient there, and the point found − v: (rows, cols) each.
        fits: (blocks,) bool.
    """
    polytope, rows = problem.polytope, problem.shape[0]
    found, half, direction = step
    moved = found - state.mask
    uphill = polytope.block_sum(torch.linalg.vecdot(direction, _scaled(moved, state.metric))) < 0
    following = (1 + (1 + 4 * state.momentum.square()).sqrt()) / 2
    push = polytope.to_rows(torch.where(uphill, 0.0, (state.momentum - 1) / following), rows)
    take = polytope.to_rows(fits, rows)
    state.ahead = torch.where(take, found + push * moved, state.ahead)
    state.ahead_half = torch.where(take, half + push * (half - state.half_gradient), state.ahead_half)
    state.mask = torch.where(take, found, state.mask)
    state.half_gradient = torch.where(take, half, state.half_gradient)
    state.momentum = torch.where(fits, torch.where(uphill, 1.0, following), state.momentum)
    state.bound = torch.where(fits & uphill, _LOWER * state.bound, state.bound)
