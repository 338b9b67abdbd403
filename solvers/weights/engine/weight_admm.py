"""ADMM on the weights themselves: free weights tied to weights on a mask, the penalty rising until the mask settles.

With T the target and H the Gram, both in some scaling of the inputs, min over V of tr((T − V) H (T − V)ᵀ) is written
with a copy D of V that lies on a mask of the set. V's step solves with H + ρI, the same for all rows; D's takes the
mask whose entries of V + U/ρ have the largest squares (Boža, arXiv 2401.02938; ALPS: Meng, Behdin, Wang and Mazumder,
NeurIPS 2024). The penalty stays for a few iterations, so one inverse serves them, and each is one product.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Gram, MaskProblem, Polytope, Problem, RelaxPruneError
from relaxprune.problems.checks import fraction, one_of

from ...base import (
    CHECK_EVERY,
    DTYPES,
    Answer,
    Counts,
    Run,
    Solver,
    Status,
    block_bytes,
    needs_weights,
)
from ...driver import Band, Driver

STEPS = 3  # iterations between changes of the penalty
_MATRICES = 8  # (rows, cols) float64 tensors held at once
_RIDGE = 1e-3  # of the unit diagonal, for conditional variances


def conditional_variances(gram: Gram) -> Tensor:
    """Return 1 / ((C + 10⁻³ I)⁻¹)_jj, C the correlation: the share of input j that the others leave open, (cols,)."""

    def make() -> Tensor:
        matrix = gram.full_correlation()
        matrix.diagonal().add_(_RIDGE)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):  # not positive semidefinite
            return torch.ones_like(matrix[0])
        return 1 / torch.cholesky_inverse(factor).diagonal()

    return gram.remember("conditional variances", make)


class WeightAdmm:
    """The state of one band of rows.

    Input j is scaled by sqrt(G_jj) times its conditional variance to the power ``balance`` / 2, and H then to a mean
    diagonal of 1.

    Args:
        problem: these rows.
        damping: added to the diagonal of H while iterating.
        balance: 0 scales to unit diagonal.
        dtype: dtype of the iterations.
        mask: (rows, cols) bool, the mask on which D starts; None starts it at the target.
    """

    def __init__(
        self, problem: MaskProblem, damping: float, balance: float, dtype: torch.dtype, mask: Tensor | None
    ) -> None:
        gram = problem.prepared
        further = conditional_variances(gram).pow(balance / 2) if balance else torch.ones_like(gram.diagonal)
        further = further.to(torch.float64)
        matrix = gram.full_correlation() / further / further.unsqueeze(1)
        matrix /= matrix.diagonal().mean()
        matrix.diagonal().add_(damping)
        self.matrix = matrix.to(dtype)
        self.root = gram.diagonal.to(torch.float64).sqrt() * further
        wide = problem.weight.to(torch.float64) * self.root  # dead inputs: 0
        size = wide.square().mean().sqrt()
        self.unit = torch.where(size > 0, size, 1.0)
        self.polytope: Polytope = problem.polytope
        self.target = (wide / self.unit).to(dtype)  # T
        self.masked = self.target  # D
        self.mask = problem.polytope.round(self.masked.square()) if mask is None else mask
        if mask is not None:
            self.masked = torch.where(mask, self.masked, 0.0)
        self.dual = torch.zeros_like(self.masked)  # U
        self.rho = 0.0
        self.iteration, self.products = 0, 0.0

    def step(self, rho: float) -> None:
        """Solve for V from D, take the mask, move the dual."""
        if rho != self.rho:
            self._penalise(rho)
        # (T H + ρ D − U) (H + ρI)⁻¹, which loses nothing to cancellation in this form.
        free = torch.addmm(self.target, rho * (self.masked - self.target) - self.dual, self.inverse)
        wanted = torch.add(free, self.dual, alpha=1 / rho)
        self.mask = self.polytope.round(wanted.square())
        self.masked = torch.where(self.mask, wanted, 0.0)
        self.dual.add_(free.sub_(self.masked), alpha=rho)
        self.iteration += 1
        self.products += 1

    def _penalise(self, rho: float) -> None:
        """Compute the inverse for another penalty; a singular matrix gives numbers that are not finite."""
        penalised = self.matrix.clone()
        penalised.diagonal().add_(rho)
        factor, failed = torch.linalg.cholesky_ex(penalised)
        self.inverse = torch.where(failed == 0, torch.cholesky_inverse(factor), torch.nan)
        self.rho = rho
        rows, cols = self.target.shape
        self.products += cols / (2 * rows)  # cols³ operations

    def weight(self) -> Tensor:
        """Return D in the scale of the layer's weights, (rows, cols) float64: 0 for inputs that never fire."""
        scaled = self.masked.to(torch.float64) * self.unit
        return torch.where(self.root > 0, scaled / self.root, 0.0)

    def finite(self) -> bool:
        """Return whether the weights are finite numbers. Waits for the device."""
        return bool(torch.isfinite(self.masked).all() & torch.isfinite(self.dual).all())


def watched(state: WeightAdmm, band: Band[MaskProblem]) -> Status | None:
    """Report the progress of a band, every few iterations, and return the status that ends it, or None."""
    if state.iteration % CHECK_EVERY:
        return None
    if not state.finite():
        return Status.NOT_FINITE
    band.report(state.iteration, state.products)
    return Status.TIME_LIMIT if band.run.expired() else None


@dataclass(frozen=True)
class WeightAdmmSolver(Solver):
    """What solvers by ADMM on the weights have in common: all but the schedule of the penalty.

    Args:
        damping: share of the mean diagonal added to it while iterating.
        rho: the initial penalty, as a share of the mean diagonal.
        dtype: ``"float32"`` or ``"float64"``.
    """

    damping: float = 0.0
    rho: float = 0.1
    dtype: str = "float32"

    default_polish: ClassVar[str | None] = None
    balance: ClassVar[float] = 0.0  # 0 scales inputs to unit diagonal
    only_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        fraction("damping", self.damping)
        if not 1e-3 <= self.rho <= 1e6:
            raise RelaxPruneError(f"rho must lie in [1e-3, 1e6], got {self.rho!r}")
        one_of("dtype", self.dtype, DTYPES)

    @abstractmethod
    def settle(self, band: Band[MaskProblem]) -> tuple[WeightAdmm, Status]:
        """Iterate on some rows, ``watched``; return their state and how they ended."""

    def check(self, problem: Problem) -> None:
        """Refuse a problem without weight and Gram."""
        needs_weights(self.name, problem)

    def least_bytes(self, problem: Problem) -> int:
        """Return the bytes of one coupled block."""
        return block_bytes(problem, _MATRICES)

    def begin(self, piece: MaskProblem, mask: Tensor | None) -> WeightAdmm:
        """Return the state of some rows, with these options."""
        return WeightAdmm(piece, self.extra_damping(piece), self.balance, getattr(torch, self.dtype), mask)

    def extra_damping(self, piece: MaskProblem) -> float:
        """Return the share of the mean diagonal to add to a problem while iterating."""
        return self.damping

    def bands(self, problem: Problem, run: Run) -> int:
        """Return the number of bands that fit the memory budget."""
        return len(list(problem.split(_MATRICES, run.memory_bytes)))

    def run(self, problem: Problem, run: Run) -> Answer:
        """Solve band by band of rows; a band that broke down keeps its start and its weights."""
        layer = needs_weights(self.name, problem)
        return Driver(self.name, run, layer.split(_MATRICES, run.memory_bytes)).sweep(self._solve)

    def _solve(self, band: Band[MaskProblem]) -> Answer:
        """Iterate on one band."""
        state, status = self.settle(band)
        if not state.finite():
            status = Status.NOT_FINITE
        weight = band.problem.weight.to(torch.float64) if status.failed else state.weight()
        return Answer(state.mask, status=status, counts=Counts(state.iteration, state.products), weight=weight)
