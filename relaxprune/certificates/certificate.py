"""Certificates: recomputed from the problem and the mask, never a solver's own claim."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.problems.errors import did_you_mean
from relaxprune.problems.polytopes.base import whole_number
from relaxprune.problems.precision import UNIT_ROUNDOFF
from relaxprune.solvers import Run, make_solver
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES

from ..solution import Solution
from .fw_gap import fw_bound

METHODS = ("fw",)
_ITERATIONS = 200
_LAST_DIGITS = 1e-12


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A lower bound on the objective of every feasible mask, and what it proves of one mask.

    Attributes:
        method: how the bound was proven.
        objective: f(mask), float64.
        lower_bound: proven to be at most f of every feasible mask of the problem as given.
        row_objective, row_lower_bound: (blocks,) float64, per coupled block; the sums are the two numbers above.
        rows_covered: number of rows that the bound covers (all of them for ``fw``).
        checks: what was verified and allowed for: how convexity was proven, the shift and slacks subtracted, precision.
        relaxed_objective: f at the relaxed mask that gave the bound.
        seconds: time to compute the bound.
    """

    method: str
    objective: float
    lower_bound: float
    row_objective: Tensor
    row_lower_bound: Tensor
    rows_covered: int
    checks: dict[str, Any] = field(default_factory=dict)
    relaxed_objective: float
    seconds: float

    @property
    def gap(self) -> float:
        """``objective`` − ``lower_bound``, never below 0: rounding may put the two a last digit apart."""
        return max(0.0, self.objective - self.lower_bound)

    @property
    def relative_gap(self) -> float:
        """``gap`` / abs(``objective``); 0 for a zero objective."""
        return self.gap / abs(self.objective) if self.objective else 0.0

    def __repr__(self) -> str:
        """Show the numbers, not the tensors."""
        return (
            f"Certificate(method={self.method!r}, objective={self.objective:.6g}, lower_bound={self.lower_bound:.6g}, "
            f"relative_gap={self.relative_gap:.3g})"
        )


def certify(
    problem: Problem,
    mask: Tensor | Solution,
    method: str = "fw",
    *,
    max_iterations: int = _ITERATIONS,
    memory_budget_bytes: int = DEFAULT_MEMORY_BYTES,
) -> Certificate:
    """Prove how far a mask, from anywhere, can be from the best one.

    Args:
        problem: the mask problem.
        mask: (rows, cols) bool, feasible; or a ``Solution``, whose relaxed mask then serves as a hint.
        method: ``"fw"``, the Frank-Wolfe bound of the box relaxation.
        max_iterations: Frank-Wolfe iterations spent on the relaxation when there is no hint.
        memory_budget_bytes: bound on temporaries.

    Raises:
        RelaxPruneError: the mask is not feasible for the problem, or the method is unknown.
    """
    if method not in METHODS:
        raise RelaxPruneError(
            f"method is {method!r}; known methods are {', '.join(METHODS)}{did_you_mean(method, METHODS)}"
        )
    hint = mask.relaxed_mask if isinstance(mask, Solution) else None
    values = mask.mask if isinstance(mask, Solution) else mask
    check_mask(problem, values, "mask", memory_budget_bytes)
    whole_number("max_iterations", max_iterations, 1)
    started = time.monotonic()
    if hint is None:
        run = Run(values, max_iterations=max_iterations, memory_bytes=memory_budget_bytes)
        answer = make_solver("fw", anneal=False).run(problem, run)
        hint = answer.point if answer.relaxed is None else answer.relaxed
    return build(problem, problem.row_objective(values, memory_budget_bytes), hint, memory_budget_bytes, started)


def check_mask(problem: Problem, mask: Tensor, name: str, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
    """Raise unless ``mask`` is a feasible bool mask of the problem."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != problem.shape:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise RelaxPruneError(f"{name} must be a bool mask of shape {problem.shape}, got {got}")
    if not problem.feasible(mask, memory_bytes):
        kept = int(mask.sum())
        raise RelaxPruneError(
            f"{name} must lie in {problem.polytope!r}, but its counts do not: it keeps {kept} of {mask.numel()} entries"
        )


def build(
    problem: Problem, row_objective: Tensor, point: Tensor, memory_bytes: int, started: float | None = None
) -> Certificate:
    """Return the Frank-Wolfe certificate of a mask with these objectives, from the tangent at ``point``."""
    started = time.monotonic() if started is None else started
    bound = fw_bound(problem, point, memory_bytes)
    # Both are rounded: a bound may pass an optimal mask by that much, and any more would disprove the bound.
    excess = bound.row_lower_bound - row_objective
    if bool((excess > bound.row_rounding + _LAST_DIGITS * row_objective.abs()).any()):
        raise RuntimeError(
            f"the {METHODS[0]} bound of a coupled block exceeds the objective of a feasible mask by "
            f"{float(excess.amax()):.3g}: a bug, please report it"
        )
    row_bound = torch.minimum(bound.row_lower_bound, row_objective)
    total = float(row_bound.sum()) - len(row_bound) * UNIT_ROUNDOFF * float(row_bound.abs().sum())
    proof = problem.proof
    return Certificate(
        method="fw",
        objective=float(row_objective.sum()),
        lower_bound=total,
        row_objective=row_objective,
        row_lower_bound=row_bound,
        rows_covered=problem.shape[0],
        checks={
            "precision": "float64",
            "psd": proof.psd,
            "psd_method": proof.method,
            "smallest_eigenvalue": proof.smallest_eigenvalue,
            "shift": proof.shift,
            "rounding_slack": float(bound.row_rounding.sum()),
            "convexity_slack": bound.convexity_slack,
        },
        relaxed_objective=float(bound.value.sum()),
        seconds=time.monotonic() - started,
    )
