"""ALPS: ADMM on the weights with a penalty that rises as the support settles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from relaxprune.problems import MaskProblem, Problem

from .base import Answer, Counts, Run, Solver, Status, block_bytes
from .weight_admm import MATRICES, WeightAdmm, by_rows, check_options, ended, needs_weights, watched

_USUAL = 33  # iterations on real layers at half the weights
_EVERY = 3  # iterations between changes of the penalty
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # share of the kept entries that changed, at least, and factor


@dataclass(frozen=True)
class Alps(Solver):
    """ADMM on weights as ALPS does it (Meng, Behdin, Wang and Mazumder, NeurIPS 2024, algorithm 1), the mask of it.

    Inputs are scaled to unit norm and damped, the penalty begins at 0.1 and grows every third iteration by 1.3, 1.2 or
    1.1, the more the support still changes, and the support that stays the same ends it. The set of masks is the
    problem's; ``KSparse(per="layer")`` is that of the published code. Of a ``ReconstructionProblem`` ``solve`` returns
    the least-squares weights on the mask, which the paper approximates by ten conjugate gradient steps.

    Two products an iteration. One eigendecomposition of the Gram serves all layers that share it.

    Args:
        damping: of the unit diagonal, while iterating.
        rho: the penalty at the beginning.
        dtype: ``"float32"`` or ``"float64"``.
    """

    damping: float = 0.01
    rho: float = 0.1
    dtype: str = "float32"

    name: ClassVar[str] = "alps"
    summary: ClassVar[str] = "ADMM on the weights with a rising penalty, as published; for weights that move"
    default_polish: ClassVar[str | None] = None
    default_iterations: ClassVar[int] = 300
    honours: ClassVar[frozenset[str]] = frozenset({"max_iterations", "time_limit_s"})
    only_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_options(self.damping, self.rho, self.dtype)

    def check(self, problem: Problem) -> None:
        """Refuse a problem without weight and Gram."""
        needs_weights(self.name, problem)

    def least_bytes(self, problem: Problem) -> int:
        """Return what one coupled block takes."""
        return block_bytes(problem, MATRICES)

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return how many it usually takes until supports stay."""
        return _USUAL if max_iterations is None else min(_USUAL, max_iterations)

    def run(self, problem: Problem, run: Run) -> Answer:
        """Iterate block of rows by block of rows until supports stay."""
        return by_rows(needs_weights(self.name, problem), run, self._settle)

    def _settle(self, piece: MaskProblem, run: Run, counts: Counts) -> tuple[WeightAdmm, Status]:
        """Return what some rows came to, and how they ended."""
        state = WeightAdmm(piece, self.damping, getattr(torch, self.dtype), None)
        most = self.default_iterations if run.max_iterations is None else run.max_iterations
        last, kept, rho = state.mask, max(1, int(state.mask.sum())), self.rho
        for iteration in range(1, most + 1):
            state.step(rho)
            early = watched(state, iteration, run, counts)
            if early is not None:
                return ended(state, early)
            if iteration % _EVERY == 0:
                changed = int((state.mask & ~last).sum()) / kept
                if changed == 0 and iteration > _EVERY:
                    return ended(state, Status.CONVERGED)
                last = state.mask
                rho *= next(factor for share, factor in _GROWTH if changed >= share)
        return ended(state, Status.ITERATION_LIMIT)
