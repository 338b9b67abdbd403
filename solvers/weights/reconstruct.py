"""The default if weights may move: ADMM on the weights along a penalty that rises from start to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from relaxprune.problems import MaskProblem, RelaxPruneError
from relaxprune.problems.checks import one_of

from ..base import Published, Status
from ..driver import Band
from .engine.weight_admm import STEPS, WeightAdmm, WeightAdmmSolver, watched

EFFORTS = {"fast": 15, "default": 24, "best": 33}  # iterations; ALPS takes about as many as best
_END = 1.0  # the penalty at the end


@dataclass(frozen=True)
class Reconstruct(WeightAdmmSolver):
    """The mask of ADMM on weights whose penalty rises from ``rho`` to 1 in even ratios, every third iteration.

    Two things make it better than ALPS at the same number of products. ALPS waits for the support to settle; here the
    penalty rises all the way within a given number of iterations: more iterations mean a slower rise and a better mask.
    And inputs are scaled not to unit variance but three quarters of the way to unit conditional variance: the cost of a
    removed weight once the others make up for it is proportional to 1 / (G⁻¹)_jj, as in optimal brain surgeon (Hassibi
    and Stork, NeurIPS 1992). D starts on the start mask.

    Args:
        effort: ``"fast"``, ``"default"`` or ``"best"``: 15, 24 or 33 iterations, unless ``max_iterations`` is given.
        rho: the initial penalty, as a share of the mean diagonal.
        damping: share of the mean diagonal added to it while iterating.
        dtype: ``"float32"`` or ``"float64"``.
    """

    effort: str = "default"

    name: ClassVar[str] = "reconstruct"
    summary: ClassVar[str] = "ADMM on the weights along a rising penalty; the default for weights that move"
    balance: ClassVar[float] = 0.75
    published: ClassVar[Published] = Published(weights="refit")
    honours: ClassVar[frozenset[str]] = frozenset({"start", "max_iterations", "time_limit_s"})

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.rho > _END:
            raise RelaxPruneError(f"rho must be at most {_END}, where the penalty ends, got {self.rho!r}")
        one_of("effort", self.effort, EFFORTS)

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return the iterations of the effort, unless they are given."""
        return EFFORTS[self.effort] if max_iterations is None else max_iterations

    def settle(self, band: Band[MaskProblem]) -> tuple[WeightAdmm, Status]:
        """Iterate on some rows while the penalty rises."""
        state = self.begin(band.problem, band.run.start)
        total = self.planned_iterations(band.run.max_iterations)
        stairs = max(1, (total - 1) // STEPS)
        for iteration in range(total):
            state.step(self.rho * (_END / self.rho) ** min(1.0, iteration // STEPS / stairs))
            early = watched(state, band)
            if early is not None:
                return state, early
        status = Status.CONVERGED if band.run.max_iterations is None else Status.ITERATION_LIMIT
        return state, status
