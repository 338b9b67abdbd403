"""The second half of solving a ReconstructionProblem: weights on the mask, judged and bounded."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from relaxprune.certificates.weight_certificate import certified
from relaxprune.problems import ReconstructionProblem
from relaxprune.solvers import Answer, Run, Solver, Status

from .refitting import fit
from .solution import CLOSED, Solution


def weighted(
    problem: ReconstructionProblem,
    answer: Answer,
    mask: Tensor,
    run: Run,
    solver: Solver,
    polisher: Solver | None,
    started: float,
) -> Solution:
    """Fit the weights on a mask where the solver brings none, and put everything together.

    Args:
        problem: the problem.
        answer: of a solver of its mask problem.
        mask: (rows, cols) bool, the final one.
        run: whose memory budget counts.
        solver: what the mask is from.
        polisher: what it was polished with, or None.
        started: ``time.monotonic()`` when the solve began.
    """
    counts = answer.counts
    if answer.weight is None or not solver.own_weights:
        fitted = fit(problem, mask, run.memory_bytes, answer.weight)
        weight, kept_objective = fitted.weight, fitted.kept_objective
        counts.products += fitted.products
    else:
        weight = torch.where(mask, answer.weight.to(problem.weight.dtype), 0.0)
        kept_objective = problem.objective(torch.where(mask, problem.weight, 0.0))
    counts.seconds = time.monotonic() - started
    certificate = certified(problem, weight, memory_bytes=run.memory_bytes)
    status = answer.status
    if not math.isfinite(certificate.objective):  # values that the dtype of the weights does not hold
        status = Status.NOT_FINITE
    if not status.failed and certificate.gap <= CLOSED * certificate.objective:
        status = Status.OPTIMAL
    elif status is Status.OPTIMAL:  # of the mask with weights that stay
        status = Status.CONVERGED
    return Solution(
        mask=mask,
        objective=certificate.objective,
        relative_error=certificate.objective / problem.reference if problem.reference > 0 else 0.0,
        certificate=certificate,
        block_objective=certificate.block_objective,
        relaxed_mask=None,
        relaxed_objective=None,
        unrounded_objective=None,
        rounded_objective=None,
        status=status,
        stats=counts,
        solver=solver.name,
        options=solver.options(),
        polish=None if polisher is None else polisher.name,
        weight=weight,
        kept_objective=kept_objective,
    )
