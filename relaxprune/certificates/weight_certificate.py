"""What is proven of weights that moved: a bound for every mask of the set with any weights on it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.problems import ReconstructionProblem, RelaxPruneError
from relaxprune.problems.errors import did_you_mean
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES
from relaxprune.support.markup import piece

from .certificate import relative
from .exact_weights import exact_bounds
from .perspective import MATRICES, Perspective, raised, separable

PERSPECTIVE, EXACT = METHODS = ("perspective", "exact")
_PRODUCTS = 8  # spent on a bound where nobody says how many


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightCertificate:
    """A lower bound on the error of every mask of the set with the best weights on it, and what it proves of an answer.

    Attributes:
        method: "perspective", "exact", or "trivial" where the Gram leaves no diagonal to separate by.
        objective: f(V), float64.
        lower_bound: proven to be at most f of all weights on every mask of the problem's set.
        block_objective, block_lower_bound: (blocks,) float64, per coupled block.
        point: (rows, cols) float64, a in the scaling of unit diagonal, from which the bound is rebuilt.
        seconds: time to compute the bound.
    """

    method: str
    objective: float
    lower_bound: float
    block_objective: Tensor
    block_lower_bound: Tensor
    point: Tensor
    seconds: float

    @property
    def gap(self) -> float:
        """``objective`` − ``lower_bound``, never below 0."""
        return max(0.0, self.objective - self.lower_bound)

    @property
    def relative_gap(self) -> float:
        """``gap`` / ``objective``; 0 for a zero objective."""
        return relative(self.gap, self.objective)

    def verify(self, problem: ReconstructionProblem, weight: Tensor) -> None:
        """Compute objective and bound again from the problem.

        Raises:
            RelaxPruneError: they are not what the certificate says, or the weights are none of the problem's.
        """
        refuse_misfit(problem, weight)
        bound = problem.residual_of_blocks()
        if self.method == EXACT:
            bound = exact_bounds(problem, DEFAULT_MEMORY_BYTES)
        elif self.method == PERSPECTIVE:
            bound = torch.maximum(bound, Perspective(problem).bounds(self.point, DEFAULT_MEMORY_BYTES))
        objective = problem.block_objective(weight)
        rows = (("bound", bound, self.block_lower_bound), ("objective", objective, self.block_objective))
        for name, now, then in rows:
            if not torch.allclose(now, then, rtol=1e-9, atol=1e-12 * max(1e-300, problem.reference)):
                raise RelaxPruneError(f"certificate: the {name} of a block is not what its point gives")
        for name, total, part in (
            ("lower_bound", self.lower_bound, self.block_lower_bound),
            ("objective", self.objective, self.block_objective),
        ):
            if not math.isclose(total, float(part.sum()), rel_tol=1e-9, abs_tol=0.0):
                raise RelaxPruneError(
                    f"certificate: {name} is {total:.6g}, but its blocks sum to {float(part.sum()):.6g}"
                )

    def _repr_html_(self) -> str:
        """Show the numbers as a small table, with the bound of every coupled block, in a notebook."""
        names = ("method", "objective", "lower_bound", "gap", "relative_gap", "seconds")
        rows = [(name.replace("_", " "), getattr(self, name)) for name in names]
        return piece("WeightCertificate", rows, [("bound of each coupled block", self.block_lower_bound.tolist())])

    def __repr__(self) -> str:
        """Show the numbers, not the tensors."""
        return (
            f"WeightCertificate(method={self.method!r}, objective={self.objective:.6g}, "
            f"lower_bound={self.lower_bound:.6g}, relative_gap={self.relative_gap:.3g})"
        )


def certify_weights(
    problem: ReconstructionProblem,
    weight: Tensor,
    method: str = PERSPECTIVE,
    *,
    iterations: int = _PRODUCTS,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> WeightCertificate:
    """Bound the error that any mask of the problem's set can reach with any weights on it.

    Args:
        problem: the problem.
        weight: (rows, cols) floats, the answer that is certified: 0 outside a mask of the problem's set.
        method: "perspective", or "exact" for at most 2^20 masks of a coupled block, all of which are tried.
        iterations: of "perspective", products spent on raising the bound; every one counts, for it holds at any time.
        memory_bytes: bound on temporaries, where rows are independent.

    Raises:
        RelaxPruneError: an unknown method, "exact" for too many masks or a singular Gram, or weights that are none of
            the problem's.
    """
    if method not in METHODS:
        raise RelaxPruneError(
            f"method must be one of {', '.join(METHODS)}, got {method!r}{did_you_mean(str(method), METHODS)}"
        )
    if iterations < 0 or memory_bytes <= 0:
        raise RelaxPruneError(
            f"iterations must be at least 0 and memory_bytes more, got {iterations!r} and {memory_bytes!r}"
        )
    refuse_misfit(problem, weight)
    return certified(problem, weight, method, iterations=iterations, memory_bytes=memory_bytes)


def certified(
    problem: ReconstructionProblem,
    weight: Tensor,
    method: str = PERSPECTIVE,
    *,
    iterations: int = _PRODUCTS,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> WeightCertificate:
    """Certify as ``certify_weights`` does, weights that are known to be 0 outside a mask; they may be infinite."""
    started = time.monotonic()
    block_objective = problem.block_objective(weight)
    point = torch.zeros(problem.shape, dtype=torch.float64, device=problem.device)
    if method == EXACT:
        best = exact_bounds(problem, memory_bytes)
    else:
        method, best, point = _perspective(problem, iterations, memory_bytes)
    return WeightCertificate(
        method=method,
        objective=float(block_objective.sum()),
        lower_bound=float(best.sum()),
        block_objective=block_objective,
        block_lower_bound=best,
        point=point,
        seconds=time.monotonic() - started,
    )


def refuse_misfit(problem: ReconstructionProblem, weight: Tensor) -> None:
    """Raise RelaxPruneError unless weights are of the problem's shape, finite, and 0 outside one of its masks."""
    if tuple(weight.shape) != tuple(problem.shape) or not weight.is_floating_point():
        found = f"{weight.dtype} of shape {tuple(weight.shape)}"
        raise RelaxPruneError(f"weight must be floats of shape {tuple(problem.shape)}, got {found}")
    if not bool(torch.isfinite(weight).all()):
        raise RelaxPruneError("weight must be finite, got NaN or Inf")
    used = (weight != 0).to(problem.device)
    # Of all masks the one that covers most of them; where one covers all, so does this.
    covered = problem.polytope.lmo(-used.to(torch.float64)) > 0.5
    if left := int((used & ~covered).sum()):
        raise RelaxPruneError(
            f"weight must be 0 outside a mask of {problem.polytope}, got at least {left} entries more than one keeps"
        )


def _perspective(problem: ReconstructionProblem, iterations: int, memory_bytes: int) -> tuple[str, Tensor, Tensor]:
    """Return the method that could be used, the bound of each coupled block, and the point that it is rebuilt from."""
    best = problem.residual_of_blocks()
    point = torch.zeros(problem.shape, dtype=torch.float64, device=problem.device)
    if separable(problem.prepared) is None:
        return "trivial", best, point
    dual = Perspective(problem)
    at_zero = dual.bounds(point, memory_bytes)
    finder = Perspective(problem, torch.float32)
    for rows, _ in problem.mask_problem.split(MATRICES, memory_bytes):
        point[rows] = raised(finder, rows, iterations)
    found = dual.bounds(point, memory_bytes)
    better = problem.polytope.to_rows(found > at_zero, len(point))
    point = torch.where(better, point, 0.0)  # where float32 led astray
    return PERSPECTIVE, torch.maximum(best, torch.maximum(found, at_zero)), point
