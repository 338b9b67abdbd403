"""What every solver is held to: each check solves a problem and judges the answer by independent arithmetic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from relaxprune import RelaxPruneError, Solution, Status, solve
from relaxprune.problems.mask_problem import WorkingMask
from relaxprune.problems.quadratic_problem import WorkingQuadratic
from relaxprune.solvers import Solver, solver_class, solver_names
from relaxprune.solvers.base import BUDGETS
from relaxprune.solvers.loop import IterativeSolver
from tests.conftest import LONG

from .account import ACCOUNT
from .problems import Case, Parts, tiny
from .reference import distance, frank_wolfe_gap, relaxed_optimum

MOST_ITERATIONS = 60  # a cap on defaults that were chosen for real layers
MOST_ITERATIONS_OF_A_HEURISTIC = 200  # where the end of the search is judged
MOST_SECONDS = 1.0 if LONG else 0.5  # for solvers whose work is no number of iterations, where the problem is not tiny
TINY = 12  # columns
OPTIMAL = 1e-6  # relative: how near to the proven optimum an answer must be that calls itself OPTIMAL
BOX = {torch.float32: 1e-4, torch.float64: 1e-9}  # how far a relaxed mask may leave the set, per dtype
OWN = ("dtype", "anneal")  # options that only some solvers have
GRACE_S = 3.0  # what a busy machine may add to a time limit


def attempt(case: Case, name: str, **settings: Any) -> Solution | None:
    """Solve ``case`` by the solver ``name``; None where it says, as it should, that it cannot take the problem.

    ``settings`` go to ``solve``; options in ``OWN`` and budgets are passed on only to solvers that take them. A solver
    that needs a package which is not installed is a visible skip.
    """
    found = solver_class(name)
    known = {option.name for option in fields(found)}
    solver = found(**{key: settings.pop(key) for key in OWN if key in settings and key in known})
    if default_iterations(solver) > MOST_ITERATIONS:
        settings.setdefault("max_iterations", MOST_ITERATIONS)
    elif case.rule.shape[1] > TINY:
        settings.setdefault("time_limit_s", MOST_SECONDS)
    others = {*OWN, *BUDGETS} - solver.budgets()
    settings = {key: value for key, value in settings.items() if key not in others}
    try:
        solution = solve(case.problem, solver, throw=False, **settings)
    except RelaxPruneError as refusal:
        ACCOUNT.refused[name] = str(refusal)
        check_refusal(name, str(refusal))
        return None
    ACCOUNT.ran.add(name)
    return solution


def default_iterations(solver: Solver) -> int:
    """Return what the solver does where nobody names a number, 0 where that is no number of iterations."""
    return solver.iterations() if isinstance(solver, IterativeSolver) else getattr(solver, "default_iterations", 0)


def check_refusal(name: str, message: str) -> None:
    """A refusal is one sentence that names the solver and one that fits."""
    if "pip install" in message:
        pytest.skip(message)
    others = [other for other in solver_names() if other != name]
    assert "\n" not in message and repr(name) in message, message
    assert any(f"'{other}'" in message or f" {other}" in message for other in others), f"names no solver: {message}"


def check_mask(case: Case, solution: Solution) -> None:
    """The mask is exactly feasible, and what is said of it is what our own arithmetic says."""
    mask = solution.mask
    assert mask.dtype == torch.bool and mask.device == case.problem.device, case.label
    assert case.rule.feasible(mask.cpu()), f"{case.label}: infeasible {mask.int().tolist()}"
    value = case.value(mask)
    assert abs(solution.objective - value) <= case.margin, f"{case.label}: {solution.objective} is really {value}"
    assert abs(float(solution.block_objective.sum()) - value) <= case.margin, case.label
    assert solution.lower_bound <= solution.objective + case.margin, case.label
    assert solution.gap == max(0.0, solution.objective - solution.lower_bound), case.label
    assert solution.options == solver_class(solution.solver)(**solution.options).options(), case.label
    if solution.relaxed_mask is None:
        assert solution.relaxed_objective is None, case.label
    else:
        relaxed = case.value(solution.relaxed_mask)
        assert solution.relaxed_objective == pytest.approx(relaxed, rel=1e-9, abs=case.margin), case.label


def check_optimum(case: Case, solution: Solution) -> None:
    """Bound ≤ enumerated optimum ≤ objective, in every coupled block; OPTIMAL means optimal."""
    assert not solution.status.failed, f"{case.label}: {solution.status}"
    blocks = torch.from_numpy(case.best)
    bound, objective = solution.block_lower_bound.cpu(), solution.block_objective.cpu()
    assert bool((bound <= blocks + case.margin).all()), f"{case.label}: bounds {bound} exceed optima {blocks}"
    assert bool((objective >= blocks - case.margin).all()), f"{case.label}: {objective} is below optima {blocks}"
    if solution.status is Status.OPTIMAL:
        best = float(blocks.sum())
        assert solution.objective <= best + OPTIMAL * abs(best) + case.margin, f"{case.label}: OPTIMAL is not {best}"


def check_relaxation(case: Case, name: str, tolerance: float) -> None:
    """The relaxed mask is feasible, and optimal within its Frank-Wolfe gap; CONVERGED keeps ``tolerance``.

    The gap is measured by our own gradient and a linear program. A solver whose ``relaxes`` is False (its relaxed mask
    belongs to another problem, as SparseFW's to a face) answers only for its bound.
    """
    if not _relaxes(name):
        return
    # CONVERGED must speak of the relaxation: what anneals afterwards is told not to.
    convex = {"dtype": "float64", "anneal": False}
    solution = attempt(case, name, gap_tolerance=tolerance, polish=None, max_iterations=500, **convex)
    if solution is None or solution.relaxed_mask is None:
        return
    optimum = relaxed_optimum(case)
    slack = _slack(case)
    assert solution.lower_bound <= optimum + slack, case.label
    if not solver_class(name).relaxes:
        return
    assert distance(solution.relaxed_mask, case.rule) <= BOX[torch.float64], case.label
    gap, value = frank_wolfe_gap(case, solution.relaxed_mask), case.value(solution.relaxed_mask)
    assert optimum - slack <= value <= optimum + gap + slack, f"{case.label}: {value}, optimum {optimum}, gap {gap}"
    assert value - gap <= solution.lower_bound + slack, f"{case.label}: the bound is weaker than the relaxed mask's own"
    if solution.status is Status.CONVERGED:
        assert gap <= tolerance * abs(value) * 1.01 + slack, f"{case.label}: CONVERGED with a gap of {gap}, f = {value}"


def _slack(case: Case) -> float:
    """What the tolerances of Clarabel and of the linear program may change of an objective."""
    return 1e-6 * case.form.magnitude / case.rule.shape[1]


@cache
def _relaxes(name: str) -> bool:
    """Tell whether a solver has a convex phase, from its answer to a tiny problem."""
    solution = attempt(tiny("mask", "row", 0).case(), name, polish=None)
    return solution is not None and solution.relaxed_mask is not None


def check_permuted(parts: Parts, name: str, share: float = 0.01) -> None:
    """The order of rows and columns does not matter: same relaxed optimum in the gaps, same objective within 1 %.

    The objective is that of a heuristic which came to its end: where a time limit was one, or the relaxation that is
    rounded has not converged, the gap alone is judged. A solver that is ``ordered`` says itself that the order counts.
    """
    default = default_iterations(solver_class(name)()) or None
    limit: dict[str, Any] = {"time_limit_s": MOST_SECONDS}
    if default is not None:
        # A search over masks whose rows share one count needs all of its rounds to forget where it began.
        whole = parts.rule.height == parts.rule.shape[0] and not _relaxes(name)
        limit = {"max_iterations": default if whole else min(default, MOST_ITERATIONS_OF_A_HEURISTIC)}
    first, second = parts.case(), parts.permuted(1).case()
    one, other = (attempt(case, name, dtype="float64", **limit) for case in (first, second))
    if one is None or other is None:
        assert one is None and other is None, f"{name} takes only one of {first.label} and {second.label}"
        return
    convex = one.relaxed_mask is not None and one.relaxed_objective == one.unrounded_objective
    early = {Status.TIME_LIMIT, Status.ITERATION_LIMIT} if convex else {Status.TIME_LIMIT}
    if not early & {one.status, other.status} and not solver_class(name).ordered:
        assert abs(one.objective - other.objective) <= share * abs(one.objective) + first.margin, (
            f"{first.label}: {one.objective} and {other.objective} permuted"
        )
    if one.relaxed_mask is not None and other.relaxed_mask is not None and solver_class(name).relaxes:
        gap = max(frank_wolfe_gap(first, one.relaxed_mask), frank_wolfe_gap(second, other.relaxed_mask))
        apart = abs(first.value(one.relaxed_mask) - second.value(other.relaxed_mask))
        assert apart <= max(0.0, gap) + _slack(first), f"{first.label}: {apart} apart, gap {gap}"


def check_repeated(case: Case, name: str) -> None:
    """The same seed gives the same mask, bit for bit, unless the clock ended a solve."""
    one, other = (attempt(case, name, seed=3, max_iterations=50) for _ in range(2))
    if one is not None and other is not None and Status.TIME_LIMIT not in (one.status, other.status):
        assert torch.equal(one.mask, other.mask), f"{case.label}: two masks from one seed"


def check_products(case: Case, name: str) -> None:
    """Reported matrix products are those that were done; none is hidden.

    A solver that works by other means as well (a factorisation, a table of masks) sets ``only_images = False`` and may
    report more than the products that ``Working.image`` did.
    """
    with watched(case.problem.shape[0]) as seen:
        solution = attempt(case, name, polish=None, max_iterations=25)
    if solution is None:
        return
    reported = solution.stats.products
    assert reported >= seen.products - 1e-6, f"{case.label}: {seen.products} products, {reported} reported"
    if solver_class(name).only_images:
        assert reported == pytest.approx(seen.products, abs=1e-6), f"{case.label}: {seen.products} products"


def check_budgets(case: Case, name: str) -> None:
    """An iteration limit and a time limit end a solve, and the mask is feasible all the same."""
    few = attempt(case, name, polish=None, max_iterations=3)
    if few is not None:
        check_mask(case, few)
        assert few.stats.iterations <= 3, f"{case.label}: {few.stats.iterations} iterations"
    started = time.monotonic()
    short = attempt(case, name, time_limit_s=0.05, max_iterations=10**6)
    if short is not None:
        assert time.monotonic() - started <= 0.05 + GRACE_S, f"{case.label}: the time limit passed by"
        check_mask(case, short)


def check_failure(case: Case, name: str) -> None:
    """A computation that leaves the finite numbers ends in a status and a feasible mask, never in an exception."""
    with watched(case.problem.shape[0], break_from=2) as seen:
        solution = attempt(case, name, polish=None)
    if solution is None:
        return
    check_mask(case, solution)
    if seen.broken:
        assert solution.status.failed, f"{case.label}: {solution.status} after NaN"
        few = {"max_iterations": MOST_ITERATIONS} if "max_iterations" in solver_class(name)().budgets() else {}
        with watched(case.problem.shape[0], break_from=2), pytest.raises(FloatingPointError, match="finite"):
            solve(case.problem, name, polish=None, **few)


def check_monotone(case: Case, name: str) -> None:
    """With ``monotone``: neither the start nor fewer iterations ever give a better point than more iterations do."""
    if not solver_class(name).monotone:
        return
    start = case.problem.polytope.round(case.problem.score(case.problem.default_start))
    values = [case.value(start)]
    for budget in (1, 2, 5, 10, 20, 40):
        solution = attempt(case, name, polish=None, max_iterations=budget, dtype="float64")
        if solution is None:
            return
        point = solution.unrounded_objective
        values.append(solution.objective if point is None else point)
    rises = [later - earlier for earlier, later in pairwise(values)]
    assert max(rises) <= 1e-9 * abs(values[0]) + case.margin, f"{case.label}: {values}"


class Seen:
    """What was watched: products done, in whole matrices, and how many were broken on purpose."""

    def __init__(self) -> None:
        self.products = 0.0
        self.calls = 0
        self.broken = 0


@contextmanager
def watched(rows: int, break_from: int | None = None) -> Iterator[Seen]:
    """Count the products of working problems (``half_gradient`` is one too); from a call on, let them be NaN."""
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:
        for kind in (WorkingMask, WorkingQuadratic):
            _watch(patch, kind, rows, break_from, seen)
        yield seen


def _watch(patch: pytest.MonkeyPatch, kind: Any, rows: int, break_from: int | None, seen: Seen) -> None:
    """Put a counter around ``image`` of one kind of working problem."""
    original = kind.image

    def image(self: Any, direction: Tensor, out: Tensor | None = None) -> Tensor:
        result: Tensor = original(self, direction, out)
        seen.calls += 1
        seen.products += direction.shape[0] / rows
        if break_from is not None and seen.calls >= break_from:
            seen.broken += 1
            result.fill_(torch.nan)
        return result

    patch.setattr(kind, "image", image)
