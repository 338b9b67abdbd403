"""refit(): the best weights on a given mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.problems import MaskProblem, RelaxPruneError
from relaxprune.problems.checks import check_mask, positive_number
from relaxprune.problems.problem import relative_error
from relaxprune.problems.reconstruction_problem import ReconstructionProblem
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES
from relaxprune.solvers.weights.engine.least_squares import LeastSquares
from relaxprune.solvers.weights.engine.on_support import refitted


@dataclass(frozen=True, kw_only=True, eq=False)
class Refit:
    """Weights on a mask, and how good they are.

    Attributes:
        weight: (rows, cols) in the dtype of the problem's weight, +0.0 outside the mask.
        objective: f of these weights, float64, in the dtype they are in.
        relative_error: objective / trace(W G_dense Wᵀ); None with a linear term.
        kept_objective: f of the weights as they were, on the same mask.
        damping: (rows,) float64, what had to be added to the unit diagonal of a row's scaled normal equations because
            its Gram is singular on the support; 0 otherwise.
        residual: (rows,) float64, norm of the normal equations' residual relative to their right-hand side.
        products: (rows, cols) @ (cols, cols) products done.
    """

    weight: Tensor
    objective: float
    relative_error: float | None
    kept_objective: float
    damping: Tensor
    residual: Tensor
    products: float


def refit(
    problem: ReconstructionProblem | MaskProblem, mask: Tensor, *, memory_budget_bytes: int = DEFAULT_MEMORY_BYTES
) -> Refit:
    """Return the least-squares weights on a mask, row by row.

    v_S = H_SS⁻¹ (T H)_S minimises a row's objective over all weights on its support S (``ReconstructionProblem`` has T
    and H). Rows are solved in batches, by Cholesky factorisation in float64; a support of more than 192 columns by
    conjugate gradients first, and by factorisation if these do not reach a residual of 1e-5. A support on which H is
    singular gets the least damping that lets it be factorised, recorded in the result.

    For a ``MaskProblem`` with any ``Objective`` the weights minimise that over the support, by conjugate gradients on
    all rows of a coupled block; a certificate of masks says nothing of such weights.

    Args:
        problem: the target, the Gram and the set of masks.
        mask: (rows, cols) bool, True = kept; need not lie in the problem's set.
        memory_budget_bytes: bound on temporaries, besides one (cols, cols) float64 matrix, outputs and a row's system.

    Raises:
        RelaxPruneError: a mask of another shape, dtype or device, a budget that is not positive, or an objective that
            falls for ever.
    """
    if not isinstance(problem, (ReconstructionProblem, MaskProblem)):
        raise RelaxPruneError(f"problem must be a ReconstructionProblem or MaskProblem, got {type(problem).__name__}")
    check_mask("mask", mask, problem.shape, problem.device)
    positive_number("memory_budget_bytes", memory_budget_bytes)
    if isinstance(problem, MaskProblem):
        return _fit_objective(problem, mask, memory_budget_bytes)
    return fit(problem, mask, memory_budget_bytes)


def _fit_objective(problem: MaskProblem, mask: Tensor, memory_bytes: int) -> Refit:
    """Return the weights on a mask that minimise a mask problem's objective."""
    found = refitted(problem, mask, memory_bytes)
    weight = torch.where(mask, found.weight.to(problem.weight.dtype), 0.0)
    objective = problem.weight_objective(weight, memory_bytes)
    return Refit(
        weight=weight,
        objective=objective,
        relative_error=problem.relative(objective),
        kept_objective=problem.objective(mask, memory_bytes),
        damping=found.damping,
        residual=found.residual,
        products=found.products,
    )


def fit(problem: ReconstructionProblem, mask: Tensor, memory_bytes: int, start: Tensor | None = None) -> Refit:
    """Do what ``refit`` does, from weights ``start`` (rows, cols) near the answer, if there are any."""
    found = LeastSquares(problem.target, problem.prepared, memory_bytes).solve(mask, start)
    weight = torch.where(mask, found.weight.to(problem.weight.dtype), 0.0)
    objective = problem.objective(weight)
    return Refit(
        weight=weight,
        objective=objective,
        relative_error=relative_error(objective, problem.reference),
        kept_objective=problem.objective(torch.where(mask, problem.weight, 0.0)),
        damping=found.damping,
        residual=found.residual,
        products=found.products,
    )
