"""ADMM: a free residual, a constrained mask, and one factorisation for many rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError, Working
from relaxprune.problems.checks import fraction, one_of
from relaxprune.problems.mask_problem import WorkingMask

from ..base import CHECK_EVERY, needs_weights
from ..gap import within_gap
from ..loop import NEGLIGIBLE, Budget, IterativeSolver
from ..state import State

_logger = logging.getLogger("relaxprune")
_LEVELS = 20  # values of ρ that the binary variant rises through
_RISE = 3.0  # from rho / 3 to 3 rho
_BALANCE, _FACTOR = 1.5, 1.5  # residuals further apart than this change ρ by this
_LEAST_BYTES = 64 * 2**20  # of factors kept for the next band of rows, whatever the memory budget
_DEAD = 1e-12  # of the mean: a smaller diagonal entry of the Gram is not divided by
_DAMPING = 2e-3  # of the diagonal; a Gram matrix is refused when it is indefinite by more than half of it


class Factors:
    """The matrices ρ (G + ρI)⁻¹ of one run, in coordinates that even out the columns of G, for all its bands of rows.

    Args:
        problem: the working problem of any band of rows.
        power: columns are scaled by Diag(G)^(power/2), and the Gram to mean diagonal 1.
        limit: the most bytes of matrices kept for later bands of rows; others are factorised again.
    """

    def __init__(self, problem: WorkingMask, power: float, limit: int) -> None:
        """Scale the Gram; see the class."""
        wide = problem.gram.to(torch.float64)
        diagonal = wide.diagonal()
        mean = float(diagonal.mean()) or 1.0
        root = (diagonal / mean).clamp_min(_DEAD) ** (power / 2)
        self.gram = wide / root / root.unsqueeze(1)  # (cols, cols) float64
        self.gram /= float(self.gram.diagonal().mean()) or 1.0
        self.root = root.to(problem.weight.dtype)  # (cols,)
        self.room = limit // max(1, self.gram.numel() * self.root.itemsize)
        self.kept: dict[float, Tensor] = {}

    def get(self, rho: float) -> tuple[Tensor, bool]:
        """Return ρ (G + ρI)⁻¹, (cols, cols), and whether it took a factorisation."""
        if rho in self.kept:
            return self.kept[rho], False
        matrix = self.factorise(rho)
        if len(self.kept) < self.room:
            self.kept[rho] = matrix
        return matrix, True

    def factorise(self, rho: float) -> Tensor:
        """Factorise G + ρI and return ρ (G + ρI)⁻¹, (cols, cols)."""
        shifted = self.gram.clone()
        shifted.diagonal().add_(rho)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info):
            _logger.warning("admm: G + %g I is indefinite; %g of the diagonal is added in the solver", rho, _DAMPING)
            shifted.diagonal().add_(_DAMPING * self.gram.diagonal())
            factor = torch.linalg.cholesky(shifted)
        return torch.cholesky_inverse(factor).mul_(rho).to(self.root.dtype)


class Shifted:
    """The solve with G + ρI at the present ρ of a band of rows."""

    def __init__(self, factors: Factors) -> None:
        """Call ``set`` next."""
        self.factors = factors
        self.root = factors.root  # (cols,)
        self.rho = 1.0

    def set(self, problem: WorkingMask, rho: float) -> bool:
        """Set the matrix that ``solve`` multiplies by; return whether it took a factorisation."""
        matrix, fresh = self.factors.get(rho)
        self.rho = rho
        one = matrix.new_ones(1, 1)
        # A working problem of weight one: its one product is the solve, visible to whatever counts products.
        self.product = WorkingMask(one, matrix, one, problem.polytope)
        return fresh

    def solve(self, residual: Tensor) -> Tensor:
        """Return ``residual`` ρ (G + ρI)⁻¹, (rows, cols): one product."""
        return self.product.image(residual)


class AdmmState(State):
    """The mask m, the scaled dual u, and the last judged values."""

    def __init__(self, problem: WorkingMask, start: Tensor, solver: Admm, budget: Budget) -> None:
        """Begin at ``start`` (rows, cols) with a dual of zero."""
        self.binary = solver.variant == "binary"
        self.mask = start.clone()
        limit = max(budget.memory_bytes, _LEAST_BYTES) if budget.bands > 1 else 0
        self.shifted = Shifted(budget.shared.get(Factors, lambda: Factors(problem, solver.power, limit)))
        felt = problem.diagonal > NEGLIGIBLE
        self.weight = torch.where(felt, problem.weight * self.shifted.root, 0.0)  # w, (rows, cols)
        self.size = self.weight.square()  # the projection's weights
        self.dual = torch.zeros_like(self.weight)  # u
        self.rho = solver.rho
        self.iterations, self.gap_tolerance = budget.iterations, budget.gap_tolerance
        self.set_rho(problem, solver.rho / _RISE if self.binary else solver.rho)
        blocks = problem.polytope.block_count(problem.shape)
        self.settled = torch.zeros(blocks, dtype=torch.bool, device=start.device)  # did the last step keep the mask?
        self.best = start.clone()
        self.best_value = start.new_full((blocks,), torch.inf)
        self.half_gradient = torch.zeros_like(start)
        if self.binary:
            self.judge(problem)

    def point(self) -> Tensor:
        """Return the relaxed mask, or the best mask seen."""
        return self.best if self.binary else self.mask

    def relaxed(self) -> Tensor | None:
        """Return the relaxed mask, a projection: always feasible."""
        return None if self.binary else self.mask

    def set_rho(self, problem: WorkingMask, rho: float) -> None:
        """Change ρ; the dual keeps its unscaled value."""
        self.dual *= self.shifted.rho / rho
        if self.shifted.set(problem, rho):
            rows, cols = problem.shape
            self.product_count += -(-cols // (2 * rows))

    def judge(self, problem: Working) -> None:
        """Take the half gradient at the mask and, per coupled block, remember the mask with the least objective."""
        self.half_gradient = problem.half_gradient(self.mask)
        self.product_count += 1
        value = problem.polytope.block_sum(problem.row_value(self.mask, self.half_gradient))
        better = value < self.best_value
        self.best_value = torch.minimum(value, self.best_value)  # keeps a NaN, so that the loop sees it
        self.best = torch.where(problem.polytope.to_rows(better, self.mask.shape[0]), self.mask, self.best)


@dataclass(frozen=True)
class Admm(IterativeSolver[AdmmState]):
    """Alternating directions: min tr(R G Rᵀ) over free residuals R, tied to R = W ∘ (1 − M), M in the set.

    The residual's step is one solve with G + ρI, the same for every row and iteration, here one product with
    ρ (G + ρI)⁻¹. The mask's step separates: "relaxed" projects 1 − (r + u) / w onto the polytope, weighted by w²;
    "binary" takes the exact minimiser over masks, the largest w² (2t − 1), and keeps the best mask seen. The relaxed ρ
    balances the residuals (Boyd, Parikh, Chu, Peleato and Eckstein, 2011, sections 3.1 and 3.4), and stays fixed in the
    second half. Binary masks are not a convex set: for them ρ rises step by step until the mask has settled (as in
    ALPS: Meng, Behdin, Wang and Mazumder, NeurIPS 2024). One factorisation for all rows of a band, and scaled columns:
    Boža, arXiv 2401.02938, which updates weights under a given mask; here weights stay and the mask is the unknown.

    One product per iteration and one every 10 to judge. A factorisation takes the work of cols / (2 rows) products and
    counts as that many, rounded up. "binary" takes 20, used by all bands of rows if they fit the memory budget or 64
    MiB (what does not fit is factorised for each band); "relaxed" takes few, but its ρ follows each band: bands have
    only the first ρ, and others by chance, in common. A Gram matrix that is indefinite beyond ρ is damped inside the
    solver, with a warning in the log.

    Args:
        dtype: ``"float32"`` or ``"float64"``; factorisations are float64.
        variant: ``"binary"`` or ``"relaxed"``.
        rho: penalty, relative to the mean diagonal of the scaled Gram; "binary" rises from rho / 3 to 3 rho.
        power: columns are scaled by Diag(G)^(power / 2): 0 leaves G as it is, 1 makes it a correlation matrix.
    """

    variant: Literal["binary", "relaxed"] = "binary"
    rho: float = 0.3
    power: float = 0.6

    name: ClassVar[str] = "admm"
    summary: ClassVar[str] = "ADMM on residual and mask: binary with rising penalty, or the relaxation"
    default_iterations: ClassVar[int] = 200
    only_images: ClassVar[bool] = False  # factorisations count too
    matrices: ClassVar[int] = 22  # the projection works in float64

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        one_of("variant", self.variant, ("binary", "relaxed"))
        if not 1e-6 <= self.rho <= 1e6:
            raise RelaxPruneError(f"rho must lie in [1e-6, 1e6], got {self.rho!r}")
        fraction("power", self.power)

    def budgets(self) -> frozenset[str]:
        """Return the budgets in use: only the relaxation has a gap to end at."""
        return self.honours | ({"gap_tolerance"} if self.variant == "relaxed" else set())

    def check(self, problem: Problem) -> None:
        """Refuse a problem without weight and Gram, and, for the relaxation, a set without a projection."""
        needs_weights(self.name, problem)
        if self.variant == "relaxed" and not problem.polytope.projects():
            raise RelaxPruneError(
                f"solver 'admm' with variant='relaxed' needs a projection, which a "
                f"{problem.polytope.label} set does not have; use variant='binary' or fw"
            )

    def init(self, problem: Working, start: Tensor, budget: Budget) -> AdmmState:
        """Start at a feasible mask."""
        return AdmmState(_masked(problem), start, self, budget)

    def step(self, problem: Working, state: AdmmState) -> None:
        """Solve for the residual, then for the mask, then move the dual; now and then change ρ."""
        polytope, weight = problem.polytope, state.weight
        pruned = weight * (1 - state.mask)
        target = state.shifted.solve(pruned - state.dual).add_(state.dual)  # r + u
        if state.binary:
            mask = polytope.lmo(2 * weight * target - state.size)
        else:
            mask = polytope.project(torch.where(state.size > 0, 1 - target / weight, 0.5), state.size)
        dual = target - weight * (1 - mask)
        residuals = dual - state.dual, weight * (mask - state.mask)
        state.mask, state.dual = mask, dual
        state.iteration += 1
        state.product_count += 1
        look = state.iteration % CHECK_EVERY == 0
        if look or state.iteration == state.iterations:
            state.judge(problem)
            state.settled = polytope.block_sum(residuals[1].abs().sum(dim=1)) == 0
        if state.binary:
            _rise(_masked(problem), state)
        elif look and 2 * state.iteration < state.iterations:
            _balance(_masked(problem), state, residuals)

    def done(self, problem: Working, state: AdmmState) -> Tensor:
        """Return which blocks are within the gap tolerance, or whose masks have settled once ρ is at its end."""
        if not state.binary:
            return within_gap(problem, state.mask, state.half_gradient, state.gap_tolerance)
        return state.settled if state.iteration >= state.iterations else torch.zeros_like(state.settled)


def _masked(problem: Working) -> WorkingMask:
    """Return the working problem, which after ``Admm.check`` is that of a mask problem."""
    if not isinstance(problem, WorkingMask):
        raise RelaxPruneError(f"solver 'admm' needs the working copy of a MaskProblem, got {type(problem).__name__}")
    return problem


def _rise(problem: WorkingMask, state: AdmmState) -> None:
    """Take the next value of ρ when its share of the iterations is over."""
    levels = min(_LEVELS, state.iterations)
    level = state.iteration * levels // state.iterations
    if 0 < level < levels and level != (state.iteration - 1) * levels // state.iterations:
        state.set_rho(problem, state.rho * _RISE ** (2 * level / (levels - 1) - 1))


def _balance(problem: WorkingMask, state: AdmmState, residuals: tuple[Tensor, Tensor]) -> None:
    """Raise ρ if the primal residual is much larger than the dual one, lower it if much smaller."""
    shifted = state.shifted
    primal, dual = float(residuals[0].norm()), shifted.rho * float(residuals[1].norm())
    if primal > _BALANCE * dual:
        state.set_rho(problem, shifted.rho * _FACTOR)
    elif dual > _BALANCE * primal:
        state.set_rho(problem, shifted.rho / _FACTOR)
