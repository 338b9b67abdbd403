"""solve(): one call from a problem to a mask with a proof."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relaxprune.certificates.certificate import build, check_mask
from relaxprune.options.checks import (
    DEFAULT_START,
    OBS_SWAP,
    check_budgets,
    check_seed,
    check_start,
    default_solver,
    neediest,
    polisher_of,
    refuse_ignored,
    refuse_small,
)
from relaxprune.problems import Problem, ReconstructionProblem, RelaxPruneError
from relaxprune.solvers import (
    Answer,
    Progress,
    Run,
    Solver,
    Status,
    make_solver,
    solver_class,
    solver_names,
)
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES, worse

from .solution import CLOSED, Solution
from .weighing import weighted


def solve(
    problem: Problem | ReconstructionProblem,
    solver: str | Solver | None = None,
    *,
    start: str | Tensor | None = DEFAULT_START,
    polish: str | None = "auto",
    max_iterations: int | None = None,
    time_limit_s: float | None = None,
    gap_tolerance: float | None = None,
    seed: int = 0,
    memory_budget_bytes: int | None = None,
    callback: Callable[[Progress], None] | None = None,
    throw: bool = True,
    **solver_options: Any,
) -> Solution:
    """Choose a mask, polish it, and prove how far from the best mask it can be.

    Of a ``ReconstructionProblem`` the answer has new weights as well: the least-squares ones on the mask, except where
    a solver brings its own (``sparsegpt``).

    ``max_iterations``, ``time_limit_s``, ``gap_tolerance`` and any other start than the default are refused for a
    solver that makes no use of them (``Solver.budgets()`` says of what it does).

    Args:
        problem: the mask problem, or one whose weights may move.
        solver: a name (see ``available_solvers``) or a ``Solver`` instance; None is ``fw``, and ``reconstruct`` where
            weights may move.
        start: ``"wanda"``, ``"ria"``, ``"magnitude"``, a feasible (rows, cols) bool mask, or None (the first columns).
        polish: ``"swap"`` descends to a 1-swap optimum after rounding; None leaves the rounded mask; ``"auto"`` is swap
            for solvers of the relaxation and None for one-shot masks and published methods. Where weights may move,
            ``"obs-swap"`` exchanges by the error after refitting.
        max_iterations: iterations of both phases together; None takes the solver's default.
        time_limit_s: seconds for solver and polish together, looked at every 10 iterations; preparing, judging and the
            certificate of a free bound come on top.
        gap_tolerance: relative Frank-Wolfe gap that ends the convex phase.
        seed: for solvers that draw random numbers.
        memory_budget_bytes: bound on temporaries, at least ``least_memory``, within which rows are solved and judged in
            blocks. The problem, the mask and the relaxed masks in the solver's dtype, each of the size of the weight,
            come on top; so do up to 256 MiB for f(0), once per problem; and (cols, cols) matrices in float64: two to
            prove the curvature of a Gram, then a copy of it where it is not in the dtype computed in (the polish's is
            float64), and four for ``admm``, besides the factors that it keeps between blocks of rows (the budget's
            size, or 64 MiB).
        callback: called with a ``Progress`` every 10 iterations.
        throw: raise when the solver breaks down; False returns a Solution whose status says so.
        **solver_options: options of the solver named.

    Returns:
        A Solution; its mask is exactly feasible whatever the status.

    Raises:
        RelaxPruneError: bad input, in one sentence, before any work.
        FloatingPointError: the solver broke down and ``throw`` is set.
        RuntimeError: the solver returned a mask that is not feasible.
    """
    moves = isinstance(problem, ReconstructionProblem)
    chosen = check_solver(default_solver(moves) if solver is None else solver, **solver_options)
    polisher = polisher_of(polish, chosen)
    check_seed(seed)
    check_budgets(max_iterations, time_limit_s, gap_tolerance, memory_budget_bytes)
    refuse_ignored(chosen, polish, start, max_iterations, time_limit_s, gap_tolerance)
    if not isinstance(problem, (Problem, ReconstructionProblem)):
        raise RelaxPruneError(f"problem must be a Problem such as MaskProblem, got {type(problem).__name__}")
    if polish == OBS_SWAP and not moves:
        raise RelaxPruneError('polish "obs-swap" is for weights that move: give a ReconstructionProblem, or "swap"')
    layer = problem.surrogate if isinstance(problem, ReconstructionProblem) else problem
    chosen.check_device(layer.device)
    for one in (chosen, polisher):
        if one is not None:
            one.check(layer)
    refuse_small(memory_budget_bytes, layer, chosen, polisher)
    started = time.monotonic()
    memory_bytes = memory_budget_bytes or DEFAULT_MEMORY_BYTES
    run = Run(
        start=start_mask(layer, start, memory_bytes),
        max_iterations=max_iterations,
        deadline=None if time_limit_s is None else started + time_limit_s,
        gap_tolerance=gap_tolerance,
        seed=seed,
        memory_bytes=memory_bytes,
        callback=callback,
    )
    with torch.autocast(layer.device.type, enabled=False):
        answer, mask, rounded = _masked(layer, run, chosen, polisher, throw)
        if isinstance(problem, ReconstructionProblem):
            if polisher is not None and chosen.own_weights:
                answer.weight = None  # it belonged to another mask
            solution = weighted(problem, answer, mask, run, chosen, polisher, started)
            if throw and not math.isfinite(solution.objective):
                raise FloatingPointError(solution.status.value)
            return solution
        answer.counts.seconds = time.monotonic() - started
        return _report(layer, answer, mask, rounded, run, chosen, polisher)


def _masked(
    problem: Problem, run: Run, chosen: Solver, polisher: Solver | None, throw: bool
) -> tuple[Answer, Tensor, Tensor | None]:
    """Run the solver and the polish: the answer, the mask, and the mask before the polish where one was rounded."""
    memory_bytes = run.memory_bytes
    answer = chosen.run(problem, run)
    if answer.status.failed and throw:
        raise FloatingPointError(answer.status.value)
    final = answer.point.dtype == torch.bool
    mask = answer.point if final else problem.round_parts(answer.point.__getitem__, memory_bytes)
    rounded = mask
    if polisher is not None:
        polished = polisher.run(problem, replace(run, start=mask, max_iterations=None))
        mask = polished.point
        _add_counts(answer, polished)
    if not problem.feasible(mask, memory_bytes):
        raise RuntimeError(f"solver {chosen.name!r} returned a mask outside of the problem's set: a bug of that solver")
    return answer, mask, None if final else rounded


def least_memory(problem: Problem, solver: str | Solver = "fw", polish: str | None = "auto", **options: Any) -> int:
    """Return the smallest ``memory_budget_bytes`` that ``solve`` takes for a problem, solver and polish."""
    chosen = check_solver(solver, **options)
    return neediest(problem, chosen, polisher_of(polish, chosen))[0]


def check_solver(solver: str | Solver, **solver_options: Any) -> Solver:
    """Return the solver instance that ``solve`` would use, without doing any work.

    Raises:
        RelaxPruneError: unknown solver or option, with a suggestion.
    """
    return make_solver(solver, **solver_options)


def available_solvers() -> dict[str, str]:
    """Return the name and a one-line summary of every solver, other packages' included."""
    return {name: _summary(name) for name in solver_names()}


def _summary(name: str) -> str:
    """Return a solver's summary, or why another package's solver cannot be used: the others are there all the same."""
    try:
        return solver_class(name).summary
    except RelaxPruneError as error:
        return str(error)


def start_mask(problem: Problem, start: str | Tensor | None, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> Tensor:
    """Return the feasible mask that a solve starts from, (rows, cols) bool."""
    if isinstance(start, Tensor):
        check_mask(problem, start, "start")
        return start
    if start is None:
        one = torch.ones(1, 1, device=problem.device).expand(problem.shape)
        return problem.round_parts(one.__getitem__, memory_bytes)
    check_start(start)
    return problem.round_parts(lambda part: problem.score(start, rows=part), memory_bytes)


def _add_counts(answer: Answer, polished: Answer) -> None:
    """Add a polish's cost to the solver's, and let its budget's end show."""
    answer.counts.swap_rounds += polished.counts.swap_rounds
    answer.counts.swaps += polished.counts.swaps
    answer.counts.products += polished.counts.products
    if answer.status is not Status.OPTIMAL:  # a proof outlives a polish, which never raises the objective
        answer.status = worse(answer.status, polished.status)


def _report(
    problem: Problem,
    answer: Answer,
    mask: Tensor,
    rounded: Tensor | None,
    run: Run,
    solver: Solver,
    polisher: Solver | None,
) -> Solution:
    """Judge the mask in float64 and put everything together."""
    block_objective = problem.block_objective(mask, run.memory_bytes)
    # Without a convex phase the mask itself gives the tangent: a valid bound, usually a weak one.
    hint = mask if answer.relaxed is None else answer.relaxed
    certificate = build(problem, mask, hint, run.memory_bytes, answer.tightening, block_objective)
    status = answer.status
    closed = certificate.gap <= CLOSED * abs(certificate.objective) or (
        problem.nonnegative and problem.proof.psd and certificate.objective == 0
    )
    if closed and not status.failed:
        status = Status.OPTIMAL
    elif status is Status.OPTIMAL and not solver.proves:
        status = Status.CONVERGED
    unrounded, rounded_objective = _before_polish(problem, answer.point, rounded, mask, certificate.objective, run)
    return Solution(
        mask=mask,
        objective=certificate.objective,
        relative_error=certificate.objective / problem.reference if problem.reference > 0 else 0.0,
        certificate=certificate,
        block_objective=block_objective,
        relaxed_mask=answer.relaxed,
        relaxed_objective=None if answer.relaxed is None else certificate.relaxed_objective,
        unrounded_objective=unrounded,
        rounded_objective=rounded_objective,
        status=status,
        stats=answer.counts,
        solver=solver.name,
        options=solver.options(),
        polish=None if polisher is None else polisher.name,
    )


def _before_polish(
    problem: Problem, point: Tensor, rounded: Tensor | None, mask: Tensor, objective: float, run: Run
) -> tuple[float | None, float | None]:
    """Return the objective at the point that was rounded and at the rounded mask, None where nothing was rounded.

    A product in float64 is spared where a mask is already judged: ``mask`` at ``objective``.
    """
    if rounded is None:
        return None, None
    at_rounded = objective if torch.equal(rounded, mask) else problem.objective(rounded, run.memory_bytes)
    return problem.objective(point, run.memory_bytes), at_rounded
