"""solve(): one call from a problem to a mask with a proof."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relaxprune.options.solve_options import AUTO, SolveOptions, default_solver, solver_of
from relaxprune.problems import BaseProblem, Problem, ReconstructionProblem, RelaxPruneError, SolveError
from relaxprune.solvers import Progress, Run, Solver, Status, make_solver, solver_class, solver_names
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES, Answer, worse
from relaxprune.solvers.coupling import check_coupling
from relaxprune.solvers.crew import Crew

from .choosing import options_apart, with_choice
from .ending import Chosen, finished
from .solution import Solution


def solve(
    problem: Problem | ReconstructionProblem,
    solver: str | Solver | None = None,
    *,
    options: SolveOptions | None = None,
    callback: Callable[[Progress], None] | None = None,
    crew: Crew | None = None,
    throw: bool = True,
    **words: Any,
) -> Solution:
    """Choose a mask, polish it, and prove how far from the best mask it can be.

    For a ``ReconstructionProblem`` the answer has new weights as well: the least-squares ones on the mask, unless the
    solver brings its own (``sparsegpt``). A ``MaskProblem`` asks for a mask alone, even of a solver that is known for
    its weights (``Solver.published``).

    ``max_iterations``, ``time_limit_s``, ``gap_tolerance`` and any start other than the default are refused if the
    solver does not use them (see ``Solver.budgets()``).

    Args:
        problem: the mask problem, or one whose weights may move.
        solver: a name (see ``available_solvers``) or a ``Solver`` instance; None for ``fw``, or ``reconstruct`` if
            weights may move.
        options: what is asked of any solver: start, polish, budgets, seed, memory.
        callback: called with a ``Progress`` every 10 iterations and at the end of every band of rows, by the solver and
            then by its polish; an exception ends the solve.
        crew: processes that solve the same problem together, such as the ranks of ``joined``: they share the bands of
            rows, and all return the same; None for this process alone.
        throw: raise when the solver breaks down; False returns a Solution whose status says so.
        **words: fields of ``SolveOptions``, which override ``options``, as in ``solve(problem, seed=3)``; and options
            of the solver named, as in ``solve(problem, "fw", effort="best")``.

    Returns:
        A Solution; its mask is exactly feasible whatever the status.

    Raises:
        RelaxPruneError: bad input, in one sentence, before any work.
        SolveError: the solver broke down and ``throw`` is set; it is a FloatingPointError too.
        RuntimeError: the solver returned a mask that is not feasible.
    """
    check_problem(problem)
    asked, own = SolveOptions.of(options).updated(words)
    chosen = solver_of(default_solver(problem.moves_weights) if solver is None else solver, own)
    asked.check_for(chosen)
    asked.check_moves(problem.moves_weights)
    layer, polisher, started = problem.mask_problem, asked.polisher(chosen), time.monotonic()
    if (over := problem.polytope.chosen_from()) is not None:
        alone = problem.within(over) if isinstance(problem, ReconstructionProblem) else problem.over(over)
        options = options_apart(layer, over, asked)
        apart = solve(alone, chosen, options=options, callback=callback, crew=crew, throw=throw)
        return with_choice(problem, apart, chosen, asked.memory_bytes, started)
    chosen.check_device(layer.device)
    for one in (chosen, polisher):
        if one is not None:
            check_coupling(one, layer)
            one.check(layer)
    asked.check_memory(layer, chosen)
    run = Run(
        start=start_mask(layer, asked.start, asked.memory_bytes),
        max_iterations=asked.max_iterations,
        deadline=None if asked.time_limit_s is None else started + asked.time_limit_s,
        gap_tolerance=asked.gap_tolerance,
        seed=asked.seed,
        memory_bytes=asked.memory_bytes,
        callback=callback,
        crew=crew,
    )
    with torch.autocast(layer.device.type, enabled=False):
        answer = chosen.run(layer, run)
        _raise_failed(answer.status, throw)
        solution = finished(problem, _chosen(layer, answer, run, chosen, polisher), started)
    _raise_failed(solution.status, throw)
    return solution


def _chosen(problem: Problem, answer: Answer, run: Run, solver: Solver, polisher: Solver | None) -> Chosen:
    """Round and polish an answer.

    Raises:
        RuntimeError: the mask is not feasible.
    """
    final = answer.point.dtype == torch.bool
    mask = rounded = answer.point if final else problem.round_parts(answer.point.__getitem__, run.memory_bytes)
    if polisher is not None:
        polished = polisher.run(problem, replace(run, start=mask, max_iterations=None))
        mask = polished.point
        _add_counts(answer, polished)
    if not problem.feasible(mask, run.memory_bytes):
        raise RuntimeError(f"solver {solver.name!r} returned a mask outside the problem's set: a bug of that solver")
    return Chosen(
        mask=mask,
        rounded=None if final else rounded,
        answer=answer,
        solver=solver,
        polisher=polisher,
        memory_bytes=run.memory_bytes,
    )


def _add_counts(answer: Answer, polished: Answer) -> None:
    """Add a polish's cost to the solver's, and show if its budget ended."""
    answer.counts.swap_rounds += polished.counts.swap_rounds
    answer.counts.swaps += polished.counts.swaps
    answer.counts.products += polished.counts.products
    if answer.status is not Status.OPTIMAL:  # a proof outlives a polish, which never raises the objective
        answer.status = worse(answer.status, polished.status)


def _raise_failed(status: Status, throw: bool) -> None:
    """Raise SolveError for a status that says that the solver broke down, if ``throw`` is set."""
    if throw and status.failed:
        raise SolveError(status.value)


def check_problem(problem: object) -> None:
    """Raise RelaxPruneError unless ``problem`` is something to solve."""
    if not isinstance(problem, BaseProblem):
        raise RelaxPruneError(f"problem must be a Problem such as MaskProblem, got {type(problem).__name__}")


def least_memory(problem: Problem, solver: str | Solver = "fw", polish: str | None = AUTO, **options: Any) -> int:
    """Return the smallest ``memory_budget_bytes`` that ``solve`` accepts for a problem, solver and polish."""
    return SolveOptions(polish=polish).least_memory(problem, make_solver(solver, **options))[0]


def available_solvers() -> dict[str, str]:
    """Return the name and a one-line summary of every solver, other packages' included."""
    return {name: _summary(name) for name in solver_names()}


def _summary(name: str) -> str:
    """Return a solver's summary, or why another package's solver cannot be used; the others are still listed."""
    try:
        return solver_class(name).summary
    except RelaxPruneError as error:
        return str(error)


def start_mask(problem: Problem, start: str | Tensor | None, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> Tensor:
    """Return the feasible mask that a solve starts from, (rows, cols) bool."""
    if isinstance(start, Tensor):
        problem.check_mask(start, "start", memory_bytes)
        return start
    if start is None:
        one = torch.ones(1, 1, device=problem.device).expand(problem.shape)
        return problem.round_parts(one.__getitem__, memory_bytes)
    name = problem.default_start if start == AUTO else start
    problem.check_saliency(name, "start", 'leave it at "auto"')
    return problem.round_parts(lambda part: problem.score(name, rows=part), memory_bytes)
