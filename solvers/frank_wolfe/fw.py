"""Annealed Frank-Wolfe, the primary solver."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError, Working
from relaxprune.problems.checks import one_of
from relaxprune.problems.lowered import PRECISIONS, check_precision

from ..base import Answer, Run, Status, block_bytes
from ..driver import Band
from ..exchange.engine.descent import group_matrices
from ..gap import at_fixed_vertex, within_gap
from ..loop import Budget, IterativeSolver, Refined
from .engine.annealing import Annealing, Schedule
from .engine.refining import MATRICES, Refinement

TIGHTENINGS = ("none", "diagonal")
_LOOK_EVERY = 50  # iterations of the convex phase between checks of its gap, if no tolerance is given
_CROSSING_ITERATIONS = 15  # about what the crossings of a round cost, in iterations of the whole
_NEAR_ENTRIES = 2**20  # of a band of rows on a CPU: a tenth of the time of passes over larger ones is saved
_SETTLING = 0.6  # progress of the annealing before which no block has come to rest


@dataclass(frozen=True)
class Effort:
    """How long to look for better masks.

    Attributes:
        iterations: iterations of the first annealing.
        rounds: rounds of annealing again from the best mask.
        length: iterations of such a round.
        power: θ rises as this power of the share of an annealing done.
        polish: the polish that ``polish="auto"`` means; None if a quick descent is enough.
    """

    iterations: int
    rounds: int
    length: int
    power: float
    polish: str | None

    def total(self) -> int:
        """Return all iterations."""
        return self.iterations + self.rounds * self.length

    def divided(self, iterations: int) -> tuple[int, int]:
        """Divide ``iterations`` into those of the first annealing and a number of rounds after it."""
        rounds = max(0, iterations - self.iterations) // self.length if self.length else 0
        return iterations - rounds * self.length, rounds


EFFORTS = {
    "fast": Effort(80, 0, 0, 1.0, None),
    "default": Effort(180, 1, 170, 1.5, "swap"),
    "best": Effort(130, 7, 200, 1.5, "swap"),
}


@dataclass(frozen=True)
class FrankWolfe(IterativeSolver[Annealing]):
    """Frank-Wolfe with exact line search per coupled block, then annealing to a vertex.

    On masks f_θ(m) = f(m) + θ Σ q m (1 − m), q = diag(Q), equals f for every θ. The convex phase (θ = 0) gives the
    bound; then θ rises to 1 while Frank-Wolfe goes on, and the growing concave diagonal drives the relaxed mask to a
    vertex, so that rounding loses almost nothing. One matrix product per iteration: the half gradient is carried
    along, since it is affine in m, and recomputed every 50 iterations against drift.

    While annealing, steps go towards a running mean of the oracle's vertices instead of the last one (with weight
    ``momentum`` on the past, fading as θ nears 1): the mean is feasible too, and zigzags less. Line search keeps f_θ
    monotone in each block. The bound is taken at the mean iterate of the convex phase, whose tangent is flatter.

    A descent by cheap exchanges follows. If the effort allows, further annealings start from the best mask, on a
    diagonal with some noise; each coupled block keeps its better mask, and those that differ are crossed (see
    ``refining``). Every mask is judged in float64.

    CONVERGED, when annealing, means that the effort's schedule was completed, or that every coupled block sits at a
    vertex that the oracle returns there; with fewer iterations than the effort's, the schedule is compressed and the
    status is ITERATION_LIMIT.

    Steps use an approximate oracle: if the exact one would cost a selection, a few entries near the threshold share
    what is left of the count (``Polytope.near_lmo``). Bounds use the exact oracle.

    With ``"best"`` a mask may depend on how rows were split to fit the memory budget: rows are crossed in batches.

    Frank-Wolfe for this problem: arXiv 2510.13713, algorithm 2; exact line search: Jaggi, ICML 2013. The oracle's input
    is a mean of gradients, as in Mokhtari, Hassani and Karbasi, JMLR 2020.

    Args:
        dtype: ``"float32"`` or ``"float64"``.
        anneal: False stops after the convex phase, the plain relaxation.
        convex_share: share of the iterations before annealing starts.
        momentum: weight of past vertices in the target at θ = 0, in [0, 1); less when the iterations are few.
        smoothing: weight of past gradients in the oracle's input, in [0, 1).
        tighten: ``"diagonal"`` begins with θ = s, a vector, instead of 0: the largest that leaves f_θ
            convex, found once per Gram. Its bound is tighter and its convex phase nearer to masks.
        effort: ``"fast"`` anneals once, in 80 iterations; ``"default"`` once more from the resulting mask, 350 in all;
            ``"best"`` seven times, 1530. ``max_iterations`` changes the number of these rounds; annealings of crossings
            count in products only.
        precision: precision of the iterations' products: ``"full"`` is ``dtype``, ``"tf32"`` and ``"bf16"`` are lower,
            for devices that are faster at it; see ``relaxprune.problems.lowered``. Half gradients from scratch, the
            last tenth of an annealing and what ends a phase stay in float32; descents and everything reported are in
            float64. ``"bf16"`` holds another copy of the Gram, of 2 bytes an entry on such devices, otherwise 4.
    """

    anneal: bool = True
    convex_share: float = 0.2
    momentum: float = 0.7
    smoothing: float = 0.3
    tighten: str = "none"
    effort: str = "default"
    precision: str = "full"

    name: ClassVar[str] = "fw"
    summary: ClassVar[str] = "annealed Frank-Wolfe with exact line search (the default)"
    couples_rows: ClassVar[bool] = True
    only_images: ClassVar[bool] = False
    honours: ClassVar[frozenset[str]] = IterativeSolver.honours | {"gap_tolerance"}
    matrices: ClassVar[int] = 13

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        for name in ("convex_share", "momentum", "smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name != "convex_share" and value == 1):
                raise RelaxPruneError(f"{name} must lie in [0, 1), got {value!r}")
        one_of("tighten", self.tighten, TIGHTENINGS)
        one_of("precision", self.precision, PRECISIONS)
        one_of("effort", self.effort, EFFORTS)
        if self.precision != "full" and self.dtype != "float32":
            raise RelaxPruneError(f'precision must be "full" if dtype is {self.dtype!r}, got {self.precision!r}')

    def iterations(self) -> int:
        """Return the iterations of the effort, annealing again included."""
        return EFFORTS[self.effort].total()

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return all iterations, including about what crossings cost."""
        total = super().planned_iterations(max_iterations) or 0
        rounds = EFFORTS[self.effort].divided(total)[1] if self.anneal else 0
        return total + rounds * _CROSSING_ITERATIONS

    def polisher(self) -> str | None:
        """Return the polish of the effort."""
        return EFFORTS[self.effort].polish if self.anneal else "swap"

    def wide(self) -> int:
        """Return how many float64 tensors a solve holds; refining holds more than the iterations before it."""
        return max(super().wide(), MATRICES) if self.anneal else super().wide()

    def least_bytes(self, problem: Problem) -> int:
        """Return the bytes of one coupled block, with the couplings inside groups that descents use."""
        return block_bytes(problem, self.wide() + self._of_groups(problem))

    def row_budget(self, problem: Problem, run: Run) -> int:
        """Leave room for these couplings; on a CPU, keep the passes over a band of rows near its caches."""
        budget = run.memory_bytes * self.wide() // (self.wide() + self._of_groups(problem))
        return min(budget, 8 * self.wide() * _NEAR_ENTRIES) if problem.device.type == "cpu" else budget

    def _of_groups(self, problem: Problem) -> int:
        """Return the size of these couplings, in tensors of the problem's shape."""
        return group_matrices(problem) if self.anneal else 0

    def check_device(self, device: torch.device) -> None:
        """Refuse a precision that the device lacks."""
        check_precision(self.precision, device)

    def working(self, problem: Problem) -> Working:
        """Return the copy whose products are in ``precision``."""
        return super().working(problem).lower(self.precision)

    def run(self, problem: Problem, run: Run) -> Answer:
        """Find the tightening of the relaxation, once for all bands of rows, and iterate."""
        if self.tighten == "diagonal" and run.tightening is None:
            run = replace(run, tightening=problem.minimised.largest_tightening())
        return super().run(problem, run)

    def init(self, problem: Working, start: Tensor, budget: Budget) -> Annealing:
        """Start at a feasible mask."""
        tightening = budget.tightening if self.tighten == "diagonal" else None
        tightening = None if tightening is None else problem.tightened(tightening.to(start.dtype))
        convex = math.ceil(self.convex_share * budget.iterations) if self.anneal else budget.iterations
        return Annealing(problem, start, self._schedule(budget.iterations, convex, budget.gap_tolerance), tightening)

    def _schedule(self, iterations: int, convex: int = 0, gap_tolerance: float | None = None) -> Schedule:
        """Return the schedule of an annealing."""
        return Schedule(iterations, convex, self.momentum, self.smoothing, EFFORTS[self.effort].power, gap_tolerance)

    def step(self, problem: Working, state: Annealing) -> None:
        """Take one Frank-Wolfe step, raising θ first when annealing."""
        state.step(problem)

    def done(self, problem: Working, state: Annealing) -> Tensor:
        """Convex: the gap is within tolerance. Annealed: at a vertex that the oracle returns, so no θ will move it."""
        if state.mean is None and state.progress > _SETTLING:
            state.make_exact(problem)
            return at_fixed_vertex(problem, state.point(), state.half_gradient)
        # Without a tolerance the convex phase keeps its iterations, unless the gap vanishes.
        if state.mean is not None and (state.gap_tolerance is not None or state.iteration % _LOOK_EVERY == 0):
            state.make_exact(problem)
            return within_gap(problem, state.point(), state.half_gradient, state.gap_tolerance or 0.0)
        blocks = problem.polytope.block_count(problem.shape)
        return torch.zeros(blocks, dtype=torch.bool, device=state.centred.device)

    def before_refining(self, iterations: int) -> int:
        """Return the iterations of the first annealing."""
        return EFFORTS[self.effort].divided(iterations)[0] if self.anneal else iterations

    def refine(self, band: Band[Problem], working: Working, point: Tensor, budget: Budget) -> Refined | None:
        """Descend quickly, and anneal again as often as the effort allows."""
        if not self.anneal:
            return None
        search = Refinement(band, working, band.problem.polytope.round(point))
        effort = EFFORTS[self.effort]
        for _ in range(effort.divided(budget.total)[1]):
            if search.status is not Status.CONVERGED:
                break
            search.round(self._schedule(effort.length))
        status = search.status
        if status is Status.CONVERGED and budget.total < effort.total():
            status = Status.ITERATION_LIMIT
        return Refined(search.mask, search.counts, status)
