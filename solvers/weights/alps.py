"""ALPS: ADMM on the weights with a penalty that rises as the support settles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from relaxprune.problems import MaskProblem

from ..base import Published, Status
from ..driver import Band
from .engine.weight_admm import STEPS, WeightAdmm, WeightAdmmSolver, watched

_USUAL = 33  # iterations on real layers at half the weights
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # share of the kept entries that changed, at least, and factor


@dataclass(frozen=True)
class Alps(WeightAdmmSolver):
    """The mask of ALPS (Meng, Behdin, Wang and Mazumder, NeurIPS 2024, algorithm 1): ADMM on weights.

    Inputs are scaled to unit norm and damped, the penalty begins at 0.1 and grows every third iteration by 1.3, 1.2 or
    1.1, the more the support still changes, and a support that stays the same ends it. The set of masks is the
    problem's; ``KSparse(per="layer")`` is that of the published code. For a ``ReconstructionProblem``, ``solve``
    returns the least-squares weights on the mask, which the paper approximates by ten conjugate gradient steps; a
    ``MaskProblem`` asks for the mask alone. ``prune_model`` counts over the layer and moves weights, unless something
    else is asked for.

    One product an iteration, and a factorisation for every change of the penalty; the published code has one
    eigendecomposition, and a product of the Gram's size for every change.

    Args:
        damping: share of the mean diagonal added to it while iterating, with what the problem has added in it.
        rho: the initial penalty.
        dtype: ``"float32"`` or ``"float64"``.
    """

    damping: float = 0.01

    name: ClassVar[str] = "alps"
    summary: ClassVar[str] = "ADMM on the weights with a rising penalty, as published; for weights that move"
    default_iterations: ClassVar[int] = 300
    honours: ClassVar[frozenset[str]] = frozenset({"max_iterations", "time_limit_s"})
    published: ClassVar[Published] = Published(weights="refit", allocation="layer", damping=0.01, plain=True)

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return how many iterations it usually takes until supports stay the same."""
        return _USUAL if max_iterations is None else min(_USUAL, max_iterations)

    def extra_damping(self, piece: MaskProblem) -> float:
        """Return what the problem's own damping lacks."""
        return piece.prepared.lacking(self.damping)

    def settle(self, band: Band[MaskProblem]) -> tuple[WeightAdmm, Status]:
        """Iterate until the supports of some rows stay the same."""
        state = self.begin(band.problem, None)
        most = self.default_iterations if band.run.max_iterations is None else band.run.max_iterations
        last, kept, rho = state.mask, max(1, int(state.mask.sum())), self.rho
        for iteration in range(1, most + 1):
            state.step(rho)
            early = watched(state, band)
            if early is not None:
                return state, early
            if iteration % STEPS == 0:
                changed = int((state.mask & ~last).sum()) / kept
                if changed == 0 and iteration > STEPS:
                    return state, Status.CONVERGED
                last = state.mask
                rho *= next(factor for share, factor in _GROWTH if changed >= share)
        return state, Status.ITERATION_LIMIT
