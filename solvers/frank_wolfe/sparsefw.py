"""SparseFW as published: the reference for annealed Frank-Wolfe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from relaxprune.problems import Face, Problem, RelaxPruneError, Working
from relaxprune.problems.checks import one_of
from relaxprune.problems.saliency import SALIENCIES

from ..base import Answer, Published, Run
from ..gap import at_fixed_vertex
from ..loop import Budget, IterativeSolver
from ..state import FirstOrderState


class SparseFWState(FirstOrderState):
    """The relaxed mask, its half gradient, and the number of iterations."""

    refresh_every: ClassVar[int] = 100

    def __init__(self, problem: Working, start: Tensor, iterations: int) -> None:
        """Begin at ``start`` (rows, cols), which the first step replaces."""
        super().__init__(problem, start)
        self.iterations = iterations


@dataclass(frozen=True)
class SparseFW(IterativeSolver[SparseFWState]):
    """SparseFW (arXiv 2510.13713, algorithm 2): open-loop Frank-Wolfe with the most salient weights fixed to kept.

    The floor(alpha · keep) most salient weights are fixed, Frank-Wolfe with step 2 / (t + 2) runs on the rest for T
    iterations, and the largest entries of the last iterate are kept. The fixed weights stay in the gradient (the
    printed algorithm leaves them out, a slip: they would count as pruned). Since the first step has length 1, the start
    acts through the first gradient only. The reported bound is that of the problem as given, without the fixing.
    CONVERGED after T iterations means that the iterate is a vertex that the oracle returns.

    Args:
        dtype: ``"float32"`` or ``"float64"``.
        alpha: share of the kept weights that is fixed, in [0, 1]; 1 gives the saliency's own mask.
        saliency: ``"wanda"``, ``"ria"`` or ``"magnitude"``.
        at_most: relax to "at most keep", the paper's set; False keeps the counts of the problem's polytope.
    """

    alpha: float = 0.9
    saliency: Literal["wanda", "ria", "magnitude"] = "wanda"
    at_most: bool = True

    name: ClassVar[str] = "sparsefw"
    summary: ClassVar[str] = "SparseFW as published: open-loop steps, T = 2000, alpha = 0.9"
    couples_rows: ClassVar[bool] = True
    default_polish: ClassVar[str | None] = None
    published: ClassVar[Published] = Published(plain=True)
    default_iterations: ClassVar[int] = 2000
    relaxes: ClassVar[bool] = False  # minimises over a face, often of a larger set

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise RelaxPruneError(
                f"alpha is the share of kept weights to fix and must lie in [0, 1], got {self.alpha!r}"
            )
        one_of("saliency", self.saliency, SALIENCIES)

    def check(self, problem: Problem) -> None:
        """Refuse a problem that has no such saliency."""
        problem.check_saliency(self.saliency, f"solver {self.name!r}", "use fw or fista, which need none")

    def run(self, problem: Problem, run: Run) -> Answer:
        """Fix the most salient weights and run on the face that is left."""
        polytope = problem.polytope
        shared = problem.over(polytope.with_share(self.alpha))
        fixed = shared.round_parts(lambda part: problem.score(self.saliency, rows=part), run.memory_bytes)
        relaxed = polytope.at_most_set() if self.at_most else polytope
        return super().run(problem.over(Face(relaxed, fixed)), run)

    def init(self, problem: Working, start: Tensor, budget: Budget) -> SparseFWState:
        """Start anywhere; the first step has length 1."""
        return SparseFWState(problem, start, budget.iterations)

    def step(self, problem: Working, state: SparseFWState) -> None:
        """Take a step of 2 / (t + 2) towards the oracle's vertex."""
        state.refresh_when_due(problem)
        length = 2 / (state.iteration + 2)
        direction = problem.polytope.lmo(state.half_gradient).sub_(state.mask)
        state.half_gradient.add_(problem.image(direction), alpha=length)
        state.mask.add_(direction, alpha=length)
        state.product_count += 1
        state.iteration += 1

    def done(self, problem: Working, state: SparseFWState) -> Tensor:
        """Never stop before T iterations, the published rule; then return which blocks no step would move."""
        resting = at_fixed_vertex(problem, state.mask, state.half_gradient)
        return resting if state.iteration >= state.iterations else torch.zeros_like(resting)
