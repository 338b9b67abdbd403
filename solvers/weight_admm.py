"""ADMM on the weights themselves: free weights tied to weights on a mask, the penalty rising until the mask settles.

With T the target and H the Gram, both scaled to unit diagonal, min over V of tr((T − V) H (T − V)ᵀ) is written with a
copy D of V that lies on a mask of the set. V's step solves with H + ρI, the same for all rows; D's takes the mask whose
entries of V + U/ρ have the largest squares (Boža, arXiv 2401.02938; ALPS: Meng, Behdin, Wang and Mazumder, NeurIPS
2024). One eigendecomposition of H serves every ρ, every row and every layer that reads the same inputs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Gram, MaskProblem, Polytope, Problem, RelaxPruneError

from .base import CHECK_EVERY, Answer, Counts, Run, Solver, Status, block_bytes, needs_weights, worse

_MATRICES = 8  # (rows, cols) float64 tensors held at once
_PRODUCTS = 2  # of each iteration: into the eigenvectors and back


def spectrum(gram: Gram) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (cols,) and eigenvectors (cols, cols), float64, of the Gram scaled to unit diagonal."""

    def make() -> Tensor:
        values, vectors = torch.linalg.eigh(gram.full_correlation())
        return torch.cat([values.unsqueeze(0), vectors])

    both = gram.remember("spectrum in correlation scaling", make)
    return both[0], both[1:]


class WeightAdmm:
    """The state of one block of rows.

    Args:
        problem: these rows.
        damping: added to the unit diagonal of H while iterating.
        dtype: to iterate in.
        mask: (rows, cols) bool, where D starts; None starts it at the target.
    """

    def __init__(self, problem: MaskProblem, damping: float, dtype: torch.dtype, mask: Tensor | None) -> None:
        gram = problem.prepared
        values, vectors = spectrum(gram)
        values = values.clamp(min=0) + damping
        self.root = gram.diagonal.to(torch.float64).sqrt()
        wide = problem.weight.to(torch.float64) * self.root  # dead inputs: 0
        size = wide.square().mean().sqrt()
        self.unit = torch.where(size > 0, size, 1.0)
        target = wide / self.unit
        self.polytope: Polytope = problem.polytope
        self.values = values.to(dtype)
        self.vectors = vectors.to(dtype)
        self.right = ((target @ vectors) * values).to(dtype)  # T H, among the eigenvectors
        self.masked = target.to(dtype)  # D
        self.mask = problem.polytope.round(self.masked.square()) if mask is None else mask
        if mask is not None:
            self.masked = torch.where(mask, self.masked, 0.0)
        self.before = self.masked  # D one iteration ago
        self.dual = torch.zeros_like(self.masked)  # U
        self.products = 1  # for T H

    def step(self, rho: float, momentum: float = 0.0, relaxation: float = 1.0) -> None:
        """Solve for V from D (carried on along its last move by ``momentum``), take the mask, move the dual."""
        ahead = self.masked if momentum == 0 else torch.lerp(self.before, self.masked, 1 + momentum)
        inner = torch.addmm(self.right, torch.sub(rho * ahead, self.dual), self.vectors)
        free = inner.div_(self.values + rho) @ self.vectors.T
        if relaxation != 1:
            free = torch.lerp(self.masked, free, relaxation)
        wanted = torch.add(free, self.dual, alpha=1 / rho)
        self.mask = self.polytope.round(wanted.square())
        self.before, self.masked = self.masked, torch.where(self.mask, wanted, 0.0)
        self.dual.add_(free.sub_(self.masked), alpha=rho)
        self.products += _PRODUCTS

    def weight(self) -> Tensor:
        """Return D in the scale of the layer's weights, (rows, cols) float64: 0 for inputs that never fire."""
        scaled = self.masked.to(torch.float64) * self.unit
        return torch.where(self.root > 0, scaled / self.root, 0.0)

    def finite(self) -> bool:
        """Tell whether the weights are finite numbers. Waits for the device."""
        return bool(torch.isfinite(self.masked).all() & torch.isfinite(self.dual).all())


def watched(state: WeightAdmm, iteration: int, run: Run, counts: Counts) -> Status | None:
    """Return what ends a block of rows, looked at every few iterations, or None; counts what it took.

    Args:
        state: the block.
        iteration: done so far.
        run: whose deadline counts.
        counts: of the whole solve; ``iterations`` is raised to ``iteration``.
    """
    counts.iterations = max(counts.iterations, iteration)
    if iteration % CHECK_EVERY:
        return None
    if not state.finite():
        return Status.NOT_FINITE
    return Status.TIME_LIMIT if run.expired() else None


@dataclass(frozen=True)
class WeightAdmmSolver(Solver):
    """What solvers by ADMM on the weights have in common: all but the way of the penalty.

    Args:
        damping: of the unit diagonal, while iterating.
        rho: the penalty at the beginning, of the unit diagonal.
        dtype: ``"float32"`` or ``"float64"``.
    """

    damping: float = 0.0
    rho: float = 0.1
    dtype: str = "float32"

    default_polish: ClassVar[str | None] = None
    only_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not 0 <= self.damping <= 1:
            raise RelaxPruneError(f"damping must lie in [0, 1], got {self.damping!r}")
        if not 1e-6 <= self.rho <= 1e6:
            raise RelaxPruneError(f"rho must lie in [1e-6, 1e6], got {self.rho!r}")
        if self.dtype not in ("float32", "float64"):
            raise RelaxPruneError(f'dtype must be "float32" or "float64", got {self.dtype!r}')

    @abstractmethod
    def settle(self, piece: MaskProblem, run: Run, counts: Counts) -> tuple[WeightAdmm, Status]:
        """Iterate on some rows, ``watched``; return what they came to, and how they ended."""

    def check(self, problem: Problem) -> None:
        """Refuse a problem without weight and Gram."""
        needs_weights(self.name, problem)

    def least_bytes(self, problem: Problem) -> int:
        """Return what one coupled block takes."""
        return block_bytes(problem, _MATRICES)

    def begin(self, piece: MaskProblem, mask: Tensor | None) -> WeightAdmm:
        """Return the state of some rows, with these options."""
        return WeightAdmm(piece, self.damping, getattr(torch, self.dtype), mask)

    def run(self, problem: Problem, run: Run) -> Answer:
        """Solve block of rows by block of rows; what broke down keeps its start."""
        layer = needs_weights(self.name, problem)
        weight = layer.weight.to(torch.float64, copy=True)
        answer = Answer(run.start.clone(), weight=weight)
        for part, piece in layer.split(_MATRICES, run.memory_bytes):
            state, status = self.settle(piece, replace(run, start=run.start[part]), answer.counts)
            if not state.finite():
                status = Status.NOT_FINITE
            if not status.failed:
                answer.point[part], weight[part] = state.mask, state.weight()
            answer.counts.products += state.products * (part.stop - part.start) / layer.shape[0]
            answer.status = worse(answer.status, status)
        return answer
