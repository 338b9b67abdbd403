"""The end of every solve: weights on the mask, if they may move; objective in float64, bound and status."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.certificates import Certificate
from relaxprune.certificates.mask_certificate import build
from relaxprune.certificates.weight_certificate import build_weights
from relaxprune.problems import BaseProblem, Problem, ReconstructionProblem
from relaxprune.solvers import Answer, Solver, Status

from .refitting import fit
from .solution import CLOSED, Solution


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """A mask that a solver chose.

    Attributes:
        mask: (rows, cols) bool, feasible and polished.
        rounded: (rows, cols) bool, the mask before the polish, or None if the solver rounded nothing.
        answer: what the solver returned, with the polish's cost in its counts.
        solver: the solver.
        polisher: what the mask was polished with, or None.
        memory_bytes: bound on temporaries.
    """

    mask: Tensor
    rounded: Tensor | None
    answer: Answer
    solver: Solver
    polisher: Solver | None
    memory_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """What is known about a judged mask; names as in ``Solution``, None for what a problem does not have."""

    certificate: Certificate
    relaxed_mask: Tensor | None = None
    relaxed_objective: float | None = None
    unrounded_objective: float | None = None
    rounded_objective: float | None = None
    weight: Tensor | None = None
    kept_objective: float | None = None


def finished(problem: Problem | ReconstructionProblem, chosen: Chosen, started: float) -> Solution:
    """Judge what was chosen and put everything together.

    Args:
        problem: the problem.
        chosen: the mask.
        started: ``time.monotonic()`` when the solve began.
    """
    judged = _with_weights(problem, chosen, started) if problem.moves_weights else _as_it_is(problem, chosen, started)
    certificate = judged.certificate
    return Solution(
        mask=chosen.mask,
        objective=certificate.objective,
        relative_error=problem.relative(certificate.objective),
        certificate=certificate,
        block_objective=certificate.block_objective,
        relaxed_mask=judged.relaxed_mask,
        relaxed_objective=judged.relaxed_objective,
        unrounded_objective=judged.unrounded_objective,
        rounded_objective=judged.rounded_objective,
        status=status_of(problem, chosen.answer.status, chosen.solver, certificate),
        stats=chosen.answer.counts,
        solver=chosen.solver.name,
        options=chosen.solver.options(),
        polish=None if chosen.polisher is None else chosen.polisher.name,
        weight=judged.weight,
        kept_objective=judged.kept_objective,
    )


def status_of(problem: BaseProblem, status: Status, solver: Solver, certificate: Certificate) -> Status:
    """Return the final status: OPTIMAL for a closed gap, or for a search of all masks if weights stay.

    Args:
        problem: the problem.
        status: how the solver ended.
        solver: the solver.
        certificate: of what was found.
    """
    objective, layer = certificate.objective, problem.mask_problem
    if not math.isfinite(objective):  # values that the dtype of the weights does not hold
        return Status.NOT_FINITE
    least = objective == 0 and layer.nonnegative and layer.proof.psd
    if not status.failed and (least or certificate.gap <= CLOSED * abs(objective)):
        return Status.OPTIMAL
    proves = solver.proves and not problem.moves_weights
    return Status.CONVERGED if status is Status.OPTIMAL and not proves else status


def _as_it_is(problem: Problem, chosen: Chosen, started: float) -> _Judged:
    """Judge a mask whose weights stay; its relaxed mask gives the bound."""
    answer, memory_bytes = chosen.answer, chosen.memory_bytes
    answer.counts.seconds = time.monotonic() - started
    # Without a convex phase the mask itself gives the tangent: a valid bound, usually a weak one.
    hint = chosen.mask if answer.relaxed is None else answer.relaxed
    certificate = build(problem, chosen.mask, hint, memory_bytes, answer.tightening)
    unrounded = rounded = None
    if chosen.rounded is not None:
        unrounded = problem.objective(answer.point, memory_bytes)
        # No product in float64 is needed if the polish left the mask unchanged.
        unmoved = torch.equal(chosen.rounded, chosen.mask)
        rounded = certificate.objective if unmoved else problem.objective(chosen.rounded, memory_bytes)
    return _Judged(
        certificate=certificate,
        relaxed_mask=answer.relaxed,
        relaxed_objective=None if answer.relaxed is None else certificate.relaxed_objective,
        unrounded_objective=unrounded,
        rounded_objective=rounded,
    )


def _with_weights(problem: ReconstructionProblem, chosen: Chosen, started: float) -> _Judged:
    """Fit the weights on a mask, unless the solver brings final ones, and judge them."""
    answer, solver, mask = chosen.answer, chosen.solver, chosen.mask
    brought = None if chosen.polisher is not None and solver.own_weights else answer.weight  # of another mask
    if brought is not None and solver.own_weights:
        weight = torch.where(mask, brought.to(problem.weight.dtype), 0.0)
        kept_objective = problem.objective(torch.where(mask, problem.weight, 0.0))
    else:
        fitted = fit(problem, mask, chosen.memory_bytes, brought)
        weight, kept_objective = fitted.weight, fitted.kept_objective
        answer.counts.products += fitted.products
    answer.counts.seconds = time.monotonic() - started
    certificate = build_weights(problem, weight, chosen.memory_bytes)
    return _Judged(certificate=certificate, weight=weight, kept_objective=kept_objective)
