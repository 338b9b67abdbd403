"""The default where weights move: ADMM on the weights along a penalty that rises from start to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from relaxprune.problems import MaskProblem, Problem, RelaxPruneError
from relaxprune.problems.errors import did_you_mean

from .base import Answer, Counts, Run, Solver, Status, block_bytes
from .weight_admm import MATRICES, WeightAdmm, by_rows, check_options, ended, needs_weights, watched

EFFORTS = {"fast": 20, "default": 35, "best": 90}  # iterations
_END = 0.7  # the penalty at the end
_MOMENTUM = 0.3
_RELAXATION = 1.3
_LONG = 60  # iterations from which neither is of use


@dataclass(frozen=True)
class Reconstruct(Solver):
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

    effort: str = "default"
    rho: float = 0.05
    damping: float = 0.0
    dtype: str = "float32"

    name: ClassVar[str] = "reconstruct"
    summary: ClassVar[str] = "ADMM on the weights along a rising penalty; the default for weights that move"
    default_polish: ClassVar[str | None] = None
    honours: ClassVar[frozenset[str]] = frozenset({"start", "max_iterations", "time_limit_s"})
    only_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_options(self.damping, self.rho, self.dtype)
        if self.rho > _END:
            raise RelaxPruneError(f"rho must be at most {_END}, where the penalty ends, got {self.rho!r}")
        if self.effort not in EFFORTS:
            guess = did_you_mean(self.effort, EFFORTS)
            raise RelaxPruneError(f"effort must be one of {', '.join(EFFORTS)}, got {self.effort!r}{guess}")

    def check(self, problem: Problem) -> None:
        """Refuse a problem without weight and Gram."""
        needs_weights(self.name, problem)

    def least_bytes(self, problem: Problem) -> int:
        """Return what one coupled block takes."""
        return block_bytes(problem, MATRICES)

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return those of the effort, unless they are named."""
        return EFFORTS[self.effort] if max_iterations is None else max_iterations

    def run(self, problem: Problem, run: Run) -> Answer:
        """Iterate block of rows by block of rows."""
        return by_rows(needs_weights(self.name, problem), run, self._rise)

    def _rise(self, piece: MaskProblem, run: Run, counts: Counts) -> tuple[WeightAdmm, Status]:
        """Return what some rows came to, and how they ended."""
        state = WeightAdmm(piece, self.damping, getattr(torch, self.dtype), run.start)
        total = self.planned_iterations(run.max_iterations)
        hurried = total < _LONG
        for iteration in range(total):
            rho = self.rho * (_END / self.rho) ** (iteration / max(1, total - 1))
            state.step(rho, _MOMENTUM if hurried else 0.0, _RELAXATION if hurried else 1.0)
            early = watched(state, iteration + 1, run, counts)
            if early is not None:
                return ended(state, early)
        status = Status.CONVERGED if run.max_iterations is None else Status.ITERATION_LIMIT
        return ended(state, status)
