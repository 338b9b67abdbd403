"""Annealed Frank-Wolfe, the primary solver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import RelaxPruneError, Working

from .gap import at_fixed_vertex, within_gap
from .loop import SHARE, IterativeSolver, Plan, State
from .tightening import largest_share

_ITERATIONS_PER_MOMENTUM = 300
_MEAN_WEIGHT = 3  # iterate k weighs about k^2 in the mean
TIGHTENINGS = ("none", "diagonal")
_REFRESH_EVERY = 50  # iterations between half gradients computed from scratch, against drift


class FrankWolfeState(State):
    """The relaxed mask m as m − ½, the half gradient carried along, and the target of the steps."""

    def __init__(self, problem: Working, start: Tensor, convex: int, plan: Plan, share: Tensor | None) -> None:
        """Begin at ``start`` (rows, cols) with ``convex`` of the plan's iterations before annealing.

        ``share`` (cols,) tightens the relaxation: the convex phase minimises f + Σ share q m (1 − m).
        """
        self.centred = start - 0.5  # (rows, cols)
        self.half_gradient = problem.half_gradient(start)  # of f_theta, (rows, cols)
        self.target = self.centred.clone()  # running mean of vertices, minus ½
        self.mean = self.centred.clone()  # weighted mean of the convex phase's iterates: the better tangent point
        self.share = share
        self.theta: float | Tensor = 0.0
        self.progress = 0.0  # of the annealing, 0 to 1
        if share is not None:
            self.anneal_to(0.0, problem.diagonal)
        self.smooth = self.half_gradient.clone()  # running mean of half gradients
        self.iteration = 0
        self.iterations, self.convex = plan.iterations, convex
        self.gap_tolerance = plan.gap_tolerance
        self.end_of_convex: Tensor | None = None
        self.product_count = 1

    def point(self) -> Tensor:
        """Return m."""
        return self.centred + 0.5

    def relaxed(self) -> Tensor | None:
        """Return the mean iterate of the convex phase, up to now while that lasts."""
        return self.mean + 0.5 if self.end_of_convex is None else self.end_of_convex

    def select(self, index: Tensor) -> None:
        """Keep the rows in ``index``."""
        for name in ("centred", "mean", "half_gradient", "smooth", "target", "end_of_convex"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[index])

    def start_annealing(self) -> None:
        """End the convex phase now; annealing keeps its planned length."""
        self.iterations -= self.convex - self.iteration
        self.convex = self.iteration

    def anneal_to(self, progress: float, diagonal: Tensor) -> None:
        """Move the carried half gradient from f at the present theta to the next one: no product needed."""
        self.progress = progress
        theta = progress if self.share is None else self.share + progress * (1 - self.share)
        add_scaled(self.half_gradient, diagonal, self.centred, self.theta - theta)
        self.theta = theta

    def refresh(self, problem: Working) -> None:
        """Recompute the half gradient from scratch."""
        self.half_gradient = problem.half_gradient(self.point())
        add_scaled(self.half_gradient, problem.diagonal, self.centred, -self.theta)
        self.product_count += 1


@dataclass(frozen=True)
class FrankWolfe(IterativeSolver[FrankWolfeState]):
    """Frank-Wolfe with exact line search per coupled block, then annealing to a vertex.

    On masks f_θ(m) = f(m) + θ Σ q m (1 − m), q = diag(Q), equals f for every θ. The convex phase (θ = 0) gives the
    bound; then θ rises to 1 while Frank-Wolfe goes on, and the growing concave diagonal drives the relaxed mask to a
    vertex, so that rounding loses almost nothing. One matrix product per iteration: the half gradient is carried
    along, since it is affine in m, and recomputed every 50 iterations against drift.

    While annealing, steps go towards a running mean of the oracle's vertices rather than the last one (with weight
    ``momentum`` on the past, fading as θ nears 1): the mean is feasible too, and zigzags less. Line search keeps f_θ
    monotone in each block. The bound is taken at the mean iterate of the convex phase, whose tangent is flatter.

    CONVERGED, when annealing, means that every coupled block sits at a vertex which the oracle answers there. The
    schedule is stretched over ``max_iterations`` and often ends just short of that, whatever their number: such a mask
    is no worse, but its status is ITERATION_LIMIT.

    Frank-Wolfe for this problem: arXiv 2510.13713, algorithm 2; exact line search: Jaggi, ICML 2013. The oracle answers
    a mean of gradients in the manner of Mokhtari, Hassani and Karbasi, JMLR 2020.

    Args:
        dtype: ``"float32"`` or ``"float64"``.
        anneal: False stops after the convex phase: the plain relaxation.
        convex_share: share of the iterations before annealing starts.
        momentum: weight of past vertices in the target at θ = 0, in [0, 1); less when the iterations are few.
        smoothing: weight of past gradients in the oracle's input, in [0, 1).
        tighten: ``"diagonal"`` begins with θ = s, a vector, instead of 0: the largest share of the diagonal that leaves
            f_θ convex, found once per Gram. Its bound is tighter and its convex phase nearer to masks.
    """

    anneal: bool = True
    convex_share: float = 0.25
    momentum: float = 0.7
    smoothing: float = 0.3
    tighten: str = "none"

    name: ClassVar[str] = "fw"
    summary: ClassVar[str] = "annealed Frank-Wolfe with exact line search (the default)"
    default_iterations: ClassVar[int] = 210
    honours: ClassVar[frozenset[str]] = IterativeSolver.honours | {"gap_tolerance"}
    matrices: ClassVar[int] = 13

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        for name in ("convex_share", "momentum", "smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name != "convex_share" and value == 1):
                raise RelaxPruneError(f"{name} must lie in [0, 1), got {value!r}")
        if self.tighten not in TIGHTENINGS:
            raise RelaxPruneError(f"tighten must be one of {', '.join(TIGHTENINGS)}, got {self.tighten!r}")

    def init(self, problem: Working, start: Tensor, plan: Plan) -> FrankWolfeState:
        """Start at a feasible mask."""
        convex = plan.iterations if not self.anneal else math.ceil(self.convex_share * plan.iterations)
        share = None
        if self.tighten == "diagonal" and problem.source is not None:
            if SHARE not in plan.shared:
                plan.shared[SHARE] = largest_share(problem.source)
            share = plan.shared[SHARE].to(start.dtype)
        return FrankWolfeState(problem, start, convex, plan, share)

    def step(self, problem: Working, state: FrankWolfeState) -> None:
        """Take one Frank-Wolfe step, raising θ first when annealing."""
        if state.iteration and state.iteration % _REFRESH_EVERY == 0:
            state.refresh(problem)
        annealing = state.iteration >= state.convex
        if annealing:
            if state.end_of_convex is None:
                state.end_of_convex = state.mean + 0.5
            left = state.iterations - state.convex
            # A schedule that a gap tolerance cut short goes on at θ = 1 until a vertex is reached.
            state.anneal_to(min(1.0, (state.iteration - state.convex + 1) / max(1, left)), problem.diagonal)
        # A memory of vertices longer than the schedule would only lag behind it.
        memory = min(self.momentum, state.iterations / _ITERATIONS_PER_MOMENTUM) * math.sqrt(1 - state.progress)
        smoothing, momentum = (self.smoothing, memory) if annealing else (0.0, 0.0)
        state.smooth.lerp_(state.half_gradient, 1 - smoothing)
        vertex = problem.polytope.lmo(state.smooth).sub_(0.5)
        state.target.lerp_(vertex, 1 - momentum)
        move(problem, state, torch.sub(state.target, state.centred, out=vertex))
        state.iteration += 1
        if not annealing:
            state.mean.lerp_(state.centred, _MEAN_WEIGHT / (state.iteration + _MEAN_WEIGHT - 1))

    def done(self, problem: Working, state: FrankWolfeState) -> Tensor:
        """Convex: the gap is within tolerance. Annealed: at a vertex that the oracle returns, so no θ will move it."""
        if state.end_of_convex is not None:
            return at_fixed_vertex(problem, state.point(), state.half_gradient)
        # Where no tolerance is named the convex phase keeps its iterations, unless the gap vanishes.
        within = within_gap(problem, state.point(), state.half_gradient, state.gap_tolerance or 0.0)
        if self.anneal and bool(within.all()):
            state.start_annealing()
        return within if not self.anneal else torch.zeros_like(within)

    def products(self, state: FrankWolfeState) -> int:
        """Return one product at the start, one per iteration, one per refresh."""
        return state.product_count


def move(problem: Working, state: FrankWolfeState, direction: Tensor) -> None:
    """Exact line search on f_θ along ``direction`` (rows, cols), per coupled block, and the step, in place."""
    polytope = problem.polytope
    image = problem.image(direction)
    state.product_count += 1
    add_scaled(image, problem.diagonal, direction, -state.theta)
    slope = polytope.block_sum(torch.linalg.vecdot(state.half_gradient, direction))
    curvature = polytope.block_sum(torch.linalg.vecdot(image, direction))
    # Where the line is not convex the far end is best; a direction that ascends (a mean of old vertices may) is left.
    step = torch.where(curvature > 0, (-slope / curvature).clamp(max=1), 1.0)
    step = polytope.to_rows(torch.where(slope < 0, step, 0.0), direction.shape[0])
    state.centred.addcmul_(direction, step)
    state.half_gradient.addcmul_(image, step)


def add_scaled(total: Tensor, diagonal: Tensor, values: Tensor, factor: float | Tensor) -> None:
    """Add factor · diagonal ∘ values (rows, cols) to ``total``, in place; the factor is a number or (cols,)."""
    if isinstance(factor, Tensor):
        total.addcmul_(diagonal * factor, values)
    elif factor:
        total.addcmul_(diagonal, values, value=factor)
