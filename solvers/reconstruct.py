"""The default where weights move: ADMM on the weights along a penalty that rises from start to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from relaxprune.problems import MaskProblem, RelaxPruneError
from relaxprune.problems.errors import did_you_mean

from .base import Counts, Run, Status
from .weight_admm import WeightAdmm, WeightAdmmSolver, watched

EFFORTS = {"fast": 20, "default": 35, "best": 90}  # iterations
_END = 0.7  # the penalty at the end
_MOMENTUM = 0.3
_RELAXATION = 1.3
_LONG = 60  # iterations from which neither is of use


@dataclass(frozen=True)
class Reconstruct(WeightAdmmSolver):
    """ADMM on weights whose penalty rises from ``rho`` to 0.7 in even ratios; its mask.

    Where ALPS waits for the support to settle, the number of iterations is given and the penalty goes all the way in
    it: more iterations are a slower rise and a better mask. D starts on the start mask, V is over-relaxed, and D is
    carried on along its last move, which pays in short runs. Two products an iteration.

    Args:
        effort: 20, 35 or 90 iterations, where ``max_iterations`` does not say.
        rho: the penalty at the beginning, of the unit diagonal.
        damping: of the unit diagonal, while iterating.
        dtype: ``"float32"`` or ``"float64"``.
    """

    rho: float = 0.05
    effort: str = "default"

    name: ClassVar[str] = "reconstruct"
    summary: ClassVar[str] = "ADMM on the weights along a rising penalty; the default for weights that move"
    honours: ClassVar[frozenset[str]] = frozenset({"start", "max_iterations", "time_limit_s"})

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.rho > _END:
            raise RelaxPruneError(f"rho must be at most {_END}, where the penalty ends, got {self.rho!r}")
        if self.effort not in EFFORTS:
            guess = did_you_mean(self.effort, EFFORTS)
            raise RelaxPruneError(f"effort must be one of {', '.join(EFFORTS)}, got {self.effort!r}{guess}")

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return those of the effort, unless they are named."""
        return EFFORTS[self.effort] if max_iterations is None else max_iterations

    def settle(self, piece: MaskProblem, run: Run, counts: Counts) -> tuple[WeightAdmm, Status]:
        """Iterate on some rows while the penalty rises."""
        state = self.begin(piece, run.start)
        total = self.planned_iterations(run.max_iterations)
        hurried = total < _LONG
        for iteration in range(total):
            rho = self.rho * (_END / self.rho) ** (iteration / max(1, total - 1))
            state.step(rho, _MOMENTUM if hurried else 0.0, _RELAXATION if hurried else 1.0)
            early = watched(state, iteration + 1, run, counts)
            if early is not None:
                return state, early
        status = Status.CONVERGED if run.max_iterations is None else Status.ITERATION_LIMIT
        return state, status
