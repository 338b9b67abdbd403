"""Sets that leave some rows dense: rows are solved alone, and then the dense ones are chosen, exactly."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from relaxprune.certificates.choice_certificate import choice_certificate, dense_values, rows_apart
from relaxprune.certificates.mask_certificate import MaskCertificate
from relaxprune.certificates.weight_certificate import build_weights
from relaxprune.options.solve_options import SolveOptions
from relaxprune.problems import Polytope, Problem, ReconstructionProblem
from relaxprune.solvers import Solver

from .ending import status_of
from .solution import Solution


def options_apart(problem: Problem, over: Polytope, asked: SolveOptions) -> SolveOptions:
    """Return what is asked of the rows alone: the dense rows of a mask to start from get the default start."""
    if not isinstance(asked.start, Tensor):
        return asked
    problem.check_mask(asked.start, "start", asked.memory_bytes)
    return replace(asked, start=rows_apart(problem, over, asked.start, asked.memory_bytes))


def with_choice(
    problem: Problem | ReconstructionProblem, apart: Solution, solver: Solver, memory_bytes: int, started: float
) -> Solution:
    """Return the solution over a set with a choice of rows, from one over ``chosen_from()``.

    What a row loses does not depend on the other rows, so no other choice with these masks has a lower objective. The
    relaxed mask is left out: it belongs to the rows alone, where its bound stands.

    Args:
        problem: the problem.
        apart: the solution without dense rows.
        solver: what found it.
        memory_bytes: bound on temporaries.
        started: ``time.monotonic()`` when the solve began.
    """
    if isinstance(problem, ReconstructionProblem):
        found = _moved(problem, apart, memory_bytes)
    else:
        found = _kept(problem, apart, memory_bytes)
    certificate = found.certificate
    return replace(
        found,
        objective=certificate.objective,
        relative_error=problem.relative(certificate.objective),
        block_objective=certificate.block_objective,
        relaxed_mask=None,
        relaxed_objective=None,
        unrounded_objective=None,
        rounded_objective=None,
        status=status_of(problem, apart.status, solver, certificate),
        stats=replace(apart.stats, seconds=time.monotonic() - started),
    )


def _kept(problem: Problem, apart: Solution, memory_bytes: int) -> Solution:
    """Choose the dense rows of a problem whose weights stay."""
    assert isinstance(apart.certificate, MaskCertificate)
    mask = apart.mask | problem.polytope.choice(apart.block_objective - dense_values(problem)).unsqueeze(1)
    return replace(apart, mask=mask, certificate=choice_certificate(problem, mask, apart.certificate, memory_bytes))


def _moved(problem: ReconstructionProblem, apart: Solution, memory_bytes: int) -> Solution:
    """Choose the dense rows where weights move: a dense row gets its target, which no weights can improve on."""
    assert apart.weight is not None
    dense = problem.polytope.choice(apart.block_objective - problem.residual).unsqueeze(1)
    weight = torch.where(dense, problem.target.to(apart.weight.dtype), apart.weight)
    mask = apart.mask | dense
    return replace(
        apart,
        mask=mask,
        weight=weight,
        kept_objective=problem.objective(torch.where(mask, problem.weight, 0.0)),
        certificate=build_weights(problem, weight, memory_bytes),
    )
