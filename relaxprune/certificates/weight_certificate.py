"""Certificates of weights that moved: a bound for every mask of the set with any weights on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems import ReconstructionProblem, RelaxPruneError
from relaxprune.problems.checks import described, one_of, positive_number, whole_number
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES

from .certificate import Certificate
from .exact_weights import exact_bounds
from .perspective import MATRICES, Perspective, raised, separable
from .verify.claim import EXACT, PERSPECTIVE, TRIVIAL, WeightClaim

_ITERATIONS = 8  # products per bound by default


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WeightCertificate(Certificate):
    """A lower bound on the error of every mask of the set with the best weights on it, and the gap of one answer.

    Attributes:
        method: "perspective", "exact", or "trivial" if no diagonal can be split off the Gram.
        weight: (rows, cols) floats, the answer V; ``objective`` is f(V).
        point: (rows, cols) float64, a in the scaling of unit diagonal, from which the bound of method perspective is
            rebuilt; else None.
        tightening: (cols,) float64, d / diag(H) of method perspective; else None.
    """

    weight: Tensor
    point: Tensor | None = None
    tightening: Tensor | None = None

    @property
    def claim(self) -> WeightClaim:
        """What ``verify`` checks, as a plain value."""
        return WeightClaim(
            method=self.method,
            objective=self.objective,
            lower_bound=self.lower_bound,
            block_objective=self.block_objective,
            block_lower_bound=self.block_lower_bound,
            subject=self.subject,
            weight=self.weight,
            point=self.point,
            tightening=self.tightening,
        )

    @property
    def notes(self) -> dict[str, Any]:
        """What a file stores in addition to the claim; the proof does not depend on it."""
        return {"seconds": self.seconds}


def certify_weights(
    problem: ReconstructionProblem,
    weight: Tensor,
    method: str = PERSPECTIVE,
    *,
    max_iterations: int = _ITERATIONS,
    memory_budget_bytes: int = DEFAULT_MEMORY_BYTES,
) -> WeightCertificate:
    """Bound the error that any mask of the problem's set can reach with any weights on it.

    Args:
        problem: the problem.
        weight: (rows, cols) floats, the answer to certify: 0 outside a mask of the problem's set.
        method: "perspective", or "exact", which tries all masks of a coupled block, at most 2^20.
        max_iterations: products that "perspective" spends on raising the bound, which is valid at any time.
        memory_budget_bytes: bound on temporaries, if rows are independent.

    Raises:
        RelaxPruneError: an unknown method, "exact" for too many masks or a singular Gram, a problem of another kind,
            or weights that do not fit the problem.
    """
    one_of("method", method, (PERSPECTIVE, EXACT))
    whole_number("max_iterations", max_iterations, 0)
    positive_number("memory_budget_bytes", memory_budget_bytes)
    refuse_misfit(problem, weight)
    return build_weights(problem, weight, memory_budget_bytes, method, max_iterations)


def build_weights(
    problem: ReconstructionProblem,
    weight: Tensor,
    memory_bytes: int,
    method: str = PERSPECTIVE,
    max_iterations: int = _ITERATIONS,
) -> WeightCertificate:
    """Certify weights, which may be infinite, without checking that they are 0 outside a mask."""
    started = time.monotonic()
    block_objective = problem.block_objective(weight)
    point = tightening = None
    if method == EXACT:
        best = exact_bounds(problem, memory_bytes)
    elif (tightening := separable(problem.prepared)) is None:
        method, best = TRIVIAL, problem.residual_of_blocks().clamp(min=0.0)
    else:
        best, point = _perspective(problem, max_iterations, memory_bytes)
    return WeightCertificate(
        method=method,
        objective=float(block_objective.sum()),
        lower_bound=float(best.sum()),
        block_objective=block_objective,
        block_lower_bound=best,
        seconds=time.monotonic() - started,
        weight=weight,
        point=point,
        tightening=tightening,
    )


def refuse_misfit(problem: ReconstructionProblem, weight: Tensor) -> None:
    """Raise RelaxPruneError unless weights are of the problem's shape, finite, and 0 outside one of its masks."""
    if not isinstance(problem, ReconstructionProblem):
        raise RelaxPruneError(
            f"problem must be a ReconstructionProblem, got {type(problem).__name__}; certify takes a MaskProblem"
        )
    floats = isinstance(weight, Tensor) and weight.is_floating_point()
    if not floats or tuple(weight.shape) != tuple(problem.shape):
        raise RelaxPruneError(f"weight must be floats of shape {tuple(problem.shape)}, got {described(weight)}")
    if not bool(torch.isfinite(weight).all()):
        raise RelaxPruneError("weight must be finite, got NaN or Inf")
    used = (weight != 0).to(problem.device)
    # The mask that covers the most of them: if any covers all, this one does.
    covered = problem.polytope.lmo(-used.to(torch.float64)) > 0.5
    if left := int((used & ~covered).sum()):
        raise RelaxPruneError(
            f"weight must be 0 outside a mask of {problem.polytope}, got at least {left} entries more than one keeps"
        )


def _perspective(problem: ReconstructionProblem, iterations: int, memory_bytes: int) -> tuple[Tensor, Tensor]:
    """Return the bound of each coupled block, and the point from which it is rebuilt."""
    best = problem.residual_of_blocks().clamp(min=0.0)
    point = torch.zeros(problem.shape, dtype=torch.float64, device=problem.device)
    dual = Perspective(problem)
    at_zero = dual.bounds(point, memory_bytes)
    finder = Perspective(problem, torch.float32)
    for rows, _ in problem.mask_problem.split(MATRICES, memory_bytes):
        point[rows] = raised(finder, rows, iterations)
    found = dual.bounds(point, memory_bytes)
    better = problem.polytope.to_rows(found > at_zero, len(point))
    point = torch.where(better, point, 0.0)  # if float32 led astray
    return torch.maximum(best, torch.maximum(found, at_zero)), point
