"""The numbers of a solved layer: what it loses, the bound, and what it took."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from relaxprune.certificates import MaskCertificate
from relaxprune.problems import MaskProblem
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.precision import product64
from relaxprune.solvers import Status
from relaxprune.solving.refitting import refit
from relaxprune.solving.solution import Solution
from relaxprune.solving.solving import start_mask

from .layer_certificates import estimated_gap
from .layer_report import BoundReport, CostReport, LossReport

NO_BOUND = BoundReport(lower_bound=0.0)
"""Of weights that move on an objective of several parts: an energy, and no more is proven."""


def wanda_objective(problem: MaskProblem, solution: Solution, memory_bytes: int) -> float:
    """Return the objective of Wanda's mask, without computing it if the solution has that mask."""
    mask = start_mask(problem, "wanda", memory_bytes)
    return solution.objective if torch.equal(mask, solution.mask) else problem.objective(mask, memory_bytes)


def loss_of(solution: Solution, energy: float, wanda: float) -> LossReport:
    """Return the objectives of a solution and of Wanda's mask, with the energy of the layer."""
    return LossReport(
        dense_energy=energy,
        wanda_objective=wanda,
        objective=solution.objective,
        relaxed_objective=solution.relaxed_objective,
        unrounded_objective=solution.unrounded_objective,
        rounded_objective=solution.rounded_objective,
        kept_objective=solution.kept_objective,
    )


def bound_of(solution: Solution, certificate: MaskCertificate | None) -> BoundReport:
    """Return the bound of the certificate that was asked for, or the solver's own."""
    if certificate is None:
        return BoundReport(lower_bound=solution.certificate.lower_bound)
    return BoundReport(
        lower_bound=certificate.lower_bound,
        certificate=certificate.method,
        certified_rows=certificate.rows_covered,
        certificate_seconds=certificate.seconds,
        estimated_gap=estimated_gap(certificate),
    )


def cost_of(solution: Solution) -> CostReport:
    """Return the cost of a solution."""
    return CostReport(
        solver=solution.solver,
        polish=solution.polish,
        status=solution.status.name,
        products=solution.stats.products,
        iterations=solution.stats.iterations,
        seconds=solution.stats.seconds,
    )


def gram_error(weight: Tensor, kept: Tensor, gram: Tensor) -> float:
    """Return tr(E G Eᵀ) / tr(W G Wᵀ) on a Gram, E = W − kept (rows, cols); 0 for a layer without energy."""
    wide = weight.to(torch.float64)
    lost = wide - kept.to(torch.float64)
    energy = float((wide * product64(wide, gram)).sum())
    return float((lost * product64(lost, gram)).sum()) / energy if energy > 0 else 0.0


def moved(problem: MaskProblem, solution: Solution, zeros: Tensor | None, memory_bytes: int) -> Solution:
    """Return a solution of masks with the weights that minimise the problem's objective on its mask.

    What is proven of masks is for weights that stay; of these the status says no more than that the mask was found.

    Args:
        problem: what was solved, an energy.
        solution: of it.
        zeros: (rows, cols) bool, what stays zero where it is kept; None for nothing.
        memory_bytes: bound on temporaries.

    Raises:
        RelaxPruneError: the objective is not proven convex, so that it may fall for ever.
    """
    if not problem.proof.psd:
        raise RelaxPruneError(
            "objective must be proven positive semidefinite for weights that move, but an eigenvalue in correlation "
            f"scaling may be -{problem.proof.shift:.3g}; give damping, and coupled a strength below 1"
        )
    fitted = refit(
        problem, solution.mask if zeros is None else solution.mask & ~zeros, memory_budget_bytes=memory_bytes
    )
    return replace(
        solution,
        weight=fitted.weight,
        objective=fitted.objective,
        relative_error=fitted.relative_error,
        kept_objective=fitted.kept_objective,
        status=Status.CONVERGED if solution.status is Status.OPTIMAL else solution.status,
    )
