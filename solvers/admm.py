"""ADMM: the residual is free, the mask is constrained, and one factorisation serves every row."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from relaxprune.problems import MaskProblem, Problem, RelaxPruneError, Working
from relaxprune.problems.mask_problem import WorkingMask

from .base import CHECK_EVERY
from .loop import IterativeSolver, Plan, State

_LOG = logging.getLogger("relaxprune")
_LEVELS = 20  # values of ρ that the binary variant rises through
_RISE = 3.0  # from rho / 3 to 3 rho
_BALANCE, _FACTOR = 3.0, 2.0  # residuals further apart than this change ρ by this
_NEGLIGIBLE = 1e-18  # of the mean diagonal: entries that no mask can feel
_DEAD = 1e-12  # of the mean: a smaller diagonal entry of the Gram is not divided by
_DAMPING = 2e-3  # of the diagonal; a Gram matrix is refused when it is indefinite by more than half of it


class Shifted:
    """The solve with G + ρI, kept as the matrix ρ (G + ρI)⁻¹, in coordinates that even out the columns of G."""

    def __init__(self, problem: WorkingMask, power: float) -> None:
        """Scale the columns by Diag(G)^(power/2) and the Gram to mean diagonal 1."""
        wide = problem.gram.to(torch.float64)
        diagonal = wide.diagonal()
        mean = float(diagonal.mean()) or 1.0
        root = (diagonal / mean).clamp_min(_DEAD) ** (power / 2)
        self.gram = wide / root / root.unsqueeze(1)  # (cols, cols) float64
        self.gram /= float(self.gram.diagonal().mean()) or 1.0
        self.weight = problem.weight * root.to(problem.weight.dtype)  # (rows, cols)
        felt = problem.diagonal > _NEGLIGIBLE
        self.size = torch.where(felt, self.weight.square(), 0.0)  # (rows, cols): the projection's weights
        self.inverse_size = torch.where(felt, self.weight.square().reciprocal(), 0.0)
        self.rho = 1.0

    def set(self, problem: WorkingMask, rho: float) -> None:
        """Factorise G + ρI and form the matrix that ``solve`` multiplies by."""
        identity = torch.eye(self.gram.shape[0], dtype=torch.float64, device=self.gram.device)
        factor, info = torch.linalg.cholesky_ex(self.gram + rho * identity)
        if int(info):
            _LOG.warning("admm: G + %g I is indefinite; %g of the diagonal is added in the solver", rho, _DAMPING)
            damped = self.gram + rho * identity + _DAMPING * torch.diag(self.gram.diagonal())
            factor = torch.linalg.cholesky(damped)
        matrix = torch.cholesky_inverse(factor).mul_(rho).to(self.weight.dtype)
        self.rho = rho
        self.product = WorkingMask(self.weight, matrix, self.size, problem.polytope)

    def solve(self, pruned: Tensor) -> Tensor:
        """Return the residual that answers ``pruned``, in units of the mask: ((w ∘ pruned) ρ (G + ρI)⁻¹) / w."""
        return self.product.image(pruned).mul_(self.inverse_size)

    def select(self, index: Tensor) -> None:
        """Keep the rows in ``index``."""
        self.product = self.product.select(index)
        for name in ("weight", "size", "inverse_size"):
            setattr(self, name, getattr(self, name)[index])


class AdmmState(State):
    """The mask m, and the dual divided by w, both in units of the mask."""

    def __init__(self, problem: WorkingMask, start: Tensor, solver: Admm, plan: Plan) -> None:
        """Begin at ``start`` (rows, cols) with a dual of zero."""
        self.binary = solver.variant == "binary"
        self.mask = start.clone()
        self.dual = torch.zeros_like(start)
        self.shifted = Shifted(problem, solver.power)
        self.shifted.set(problem, solver.rho / _RISE if self.binary else solver.rho)
        self.rho = solver.rho
        self.iteration, self.iterations = 0, plan.iterations
        self.gap_tolerance = plan.gap_tolerance
        self.product_count = 0
        self.best = start.clone()
        self.best_value = start.new_full((problem.polytope.block_count(problem.shape),), torch.inf)
        if self.binary:
            self.judge(problem)

    def point(self) -> Tensor:
        """Return the relaxed mask, or the best mask seen; a dual that left the finite numbers shows."""
        return torch.where(torch.isfinite(self.dual), self.best if self.binary else self.mask, torch.nan)

    def relaxed(self) -> Tensor | None:
        """Return the relaxed mask, a projection: always feasible."""
        return None if self.binary else self.mask

    def select(self, index: Tensor) -> None:
        """Keep the rows in ``index``."""
        self.shifted.select(index)
        for name in ("mask", "dual", "best", "best_value"):
            setattr(self, name, getattr(self, name)[index])

    def set_rho(self, problem: WorkingMask, rho: float) -> None:
        """Change ρ; the dual keeps its unscaled value."""
        self.dual *= self.shifted.rho / rho
        self.shifted.set(problem, rho)

    def judge(self, problem: Working) -> None:
        """Remember, per coupled block, the mask with the least objective."""
        value = problem.polytope.block_sum(problem.row_value(self.mask, problem.half_gradient(self.mask)))
        self.product_count += 1
        better = value < self.best_value
        self.best_value = torch.where(better, value, self.best_value)
        self.best = torch.where(problem.polytope.to_rows(better, self.mask.shape[0]), self.mask, self.best)


@dataclass(frozen=True)
class Admm(IterativeSolver[AdmmState]):
    """Alternating directions: min tr(R G Rᵀ) over free residuals R, tied to R = W ∘ (1 − M), M in the set.

    The residual's step is one solve with G + ρI, the same for every row and iteration, here one product with
    ρ (G + ρI)⁻¹. The mask's step separates: "relaxed" projects 1 − (r + u) / w onto the polytope, weighted by w²;
    "binary" takes the exact minimiser over masks, the largest w² (2t − 1), and keeps the best mask seen. The relaxed
    ρ balances the residuals (Boyd, Parikh, Chu, Peleato and Eckstein, 2011, sections 3.1 and 3.4), and stays fixed in
    the second half. Binary masks are no convex set: there ρ rises step by step, which freezes the mask while it is
    still moved by the residual. ADMM with one factorisation for all rows of a layer, and columns scaled by
    their norm: Boža, arXiv 2401.02938, which updates weights under a given mask; here the mask is the unknown.

    One product per iteration and one every 10 to judge. A factorisation is no product, but costs about
    cols / (2 rows) of them: few for "relaxed", 20 for "binary". A Gram matrix that is indefinite beyond ρ is damped
    inside the solver, with a warning in the log.

    Args:
        dtype: ``"float32"`` or ``"float64"``; factorisations are float64.
        variant: ``"binary"`` or ``"relaxed"``.
        rho: penalty, relative to the mean diagonal of the scaled Gram; "binary" rises from rho / 3 to 3 rho.
        power: columns are scaled by Diag(G)^(power / 2): 0 leaves G as it is, 1 makes it a correlation matrix.
    """

    variant: Literal["binary", "relaxed"] = "binary"
    rho: float = 0.3
    power: float = 0.5

    name: ClassVar[str] = "admm"
    summary: ClassVar[str] = "ADMM on residual and mask: binary with rising penalty, or the relaxation"
    default_iterations: ClassVar[int] = 200
    default_gap: ClassVar[float] = 1e-4
    matrices: ClassVar[int] = 22  # the projection works in float64

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.variant not in ("binary", "relaxed"):
            raise RelaxPruneError(f'variant must be "binary" or "relaxed", got {self.variant!r}')
        if not 1e-6 <= self.rho <= 1e6:
            raise RelaxPruneError(f"rho must lie in [1e-6, 1e6], got {self.rho!r}")
        if not 0 <= self.power <= 1:
            raise RelaxPruneError(f"power must lie in [0, 1], got {self.power!r}")

    def check(self, problem: Problem) -> None:
        """Refuse a problem without weight and Gram, and, for the relaxation, a set without a projection."""
        if not isinstance(problem, MaskProblem):
            raise RelaxPruneError(
                f"solver 'admm' needs the weight and the Gram matrix of a MaskProblem, got {type(problem).__name__}; "
                "fw and fista need neither and fit"
            )
        if self.variant == "relaxed" and not problem.polytope.projects():
            raise RelaxPruneError(
                f"solver 'admm' with variant='relaxed' needs a projection, which a "
                f"{problem.polytope.to_dict()['kind']} set does not have; variant='binary' and fw fit"
            )

    def init(self, problem: Working, start: Tensor, plan: Plan) -> AdmmState:
        """Start at a feasible mask."""
        return AdmmState(_masked(problem), start, self, plan)

    def step(self, problem: Working, state: AdmmState) -> None:
        """Solve for the residual, then for the mask, then move the dual; now and then change ρ."""
        polytope, shifted = problem.polytope, state.shifted
        target = shifted.solve(1 - state.mask - state.dual).add_(state.dual)  # (r + u) / w
        if state.binary:
            mask = polytope.lmo(shifted.size * (2 * target - 1))
        else:
            mask = polytope.project(1 - target, shifted.size)
        dual = torch.where(shifted.size > 0, target + mask - 1, 0.0)
        moved, gap = mask - state.mask, dual - state.dual
        state.mask, state.dual = mask, dual
        state.iteration += 1
        state.product_count += 1
        if state.binary:
            if state.iteration % CHECK_EVERY == 0 or state.iteration == state.iterations:
                state.judge(problem)
            _rise(_masked(problem), state)
        elif state.iteration % CHECK_EVERY == 0 and 2 * state.iteration < state.iterations:
            _balance(_masked(problem), state, (gap, moved))

    def done(self, problem: Working, state: AdmmState) -> Tensor:
        """Binary: after the last ρ. Relaxed: a Frank-Wolfe gap within ``gap_tolerance`` (1e-4) of the objective."""
        polytope, point = problem.polytope, state.mask
        if state.binary:
            over = state.iteration >= state.iterations
            return torch.full((polytope.block_count(problem.shape),), over, dtype=torch.bool, device=point.device)
        half = problem.half_gradient(point)
        state.product_count += 1
        value = polytope.block_sum(problem.row_value(point, half))
        gap = 2 * polytope.block_sum(torch.linalg.vecdot(half, point - polytope.lmo(half)))
        return gap <= (self.default_gap if state.gap_tolerance is None else state.gap_tolerance) * value.abs()

    def products(self, state: AdmmState) -> int:
        """Return one product per iteration, and one whenever a mask is judged."""
        return state.product_count


def _masked(problem: Working) -> WorkingMask:
    """Return the working problem, which ``Admm.check`` has made sure is a mask problem's."""
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
    """Raise ρ when the primal residual is much the larger one, lower it when the dual one is."""
    shifted = state.shifted
    primal, moved = (float((shifted.weight * part).norm()) for part in residuals)
    dual = shifted.rho * moved
    if primal > _BALANCE * dual:
        state.set_rho(problem, shifted.rho * _FACTOR)
    elif dual > _BALANCE * primal:
        state.set_rho(problem, shifted.rho / _FACTOR)
