"""What every solver owes to the caller of a problem that is solved band by band of its rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from relaxprune import Solution, solve
from relaxprune.problems import Problem
from relaxprune.solvers import Answer, Progress, Run, make_solver, polish_names
from relaxprune.solvers.base import CHECK_EVERY
from relaxprune.solving.solving import least_memory

from .checks import MOST_ITERATIONS, attempt, default_iterations
from .problems import Case

LIMIT_S = 1000.0  # of a clock that stands still
ONE_SHOT = ("wanda", "ria", "magnitude")  # they score all rows at once, whatever becomes of one


def in_bands(case: Case, name: str, **settings: Any) -> Solution:
    """Solve ``case`` in the least memory, so that every row is a band of its own."""
    settings = {"memory_budget_bytes": least_memory(case.problem, name, None), **settings}
    solution = attempt(case, name, polish=None, **settings)
    assert solution is not None, f"{name} takes rows"
    return solution


def check_reports(case: Case, name: str) -> None:
    """The callback hears of every band, in order, and what it hears adds up to what is reported of the whole."""
    heard: list[Progress] = []
    solution = in_bands(case, name, callback=heard.append)
    rows = case.rule.shape[0]
    assert {item.solver for item in heard} == {name}
    numbers, bands = [item.band for item in heard], heard[0].bands
    assert bands >= rows and {item.bands for item in heard} == {bands}
    assert numbers == sorted(numbers) and set(numbers) == set(range(bands)), numbers
    assert all(0 <= item.active_blocks <= rows for item in heard)
    for values in ([item.seconds for item in heard], *_of_bands(heard, "iteration"), *_of_bands(heard, "products")):
        assert min(values) >= 0 and values == sorted(values), values
    most = max(item.iteration for item in heard)
    products = sum(values[-1] for values in _of_bands(heard, "products")) / rows
    assert solution.stats.iterations <= most and products <= solution.stats.products + 1e-9
    solver = make_solver(name)
    if solver.proves or solver.distributions():
        return  # masks by the table, or iterations inside another package
    steps = [after - before for values in _of_bands(heard, "iteration") for before, after in pairwise([0, *values])]
    assert most == solution.stats.iterations and max(steps) <= CHECK_EVERY, steps
    if solver.only_images:
        assert products == pytest.approx(solution.stats.products)


def _of_bands(heard: list[Progress], what: str) -> list[list[float]]:
    """Return a number as each band reported it."""
    return [[getattr(item, what) for item in items] for _, items in groupby(heard, key=lambda item: item.band)]


def check_stop(case: Case, name: str) -> None:
    """An exception of the callback ends the solve, as it is."""

    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise Enough

    with pytest.raises(Enough):
        in_bands(case, name, callback=stop)


def check_time(case: Case, name: str) -> None:
    """Every band gets an even share of the time that is left, and ends when it is over.

    The clock moves only when a band is heard of for the first time: to the end of its share.
    """
    now, bands = LIMIT_S, 0
    seen: dict[int, int] = {}

    def hear(progress: Progress) -> None:
        nonlocal now, bands
        seen[progress.band] = seen.get(progress.band, 0) + 1
        if seen[progress.band] == 1:
            now += (2 * LIMIT_S - now) / (progress.bands - progress.band)
            bands = progress.bands

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        solution = in_bands(case, name, callback=hear, time_limit_s=LIMIT_S)
    assert set(seen) == set(range(bands)), f"{name}: time was up after {sorted(seen)} of {bands} bands"
    assert now == pytest.approx(2 * LIMIT_S)
    if "time_limit_s" in make_solver(name).budgets():
        assert max(seen.values()) <= 2, f"{name} went on after the share of a band: {seen}"
    assert case.rule.feasible(solution.mask)


def check_broken_band(case: Case, name: str) -> None:
    """A band whose numbers are not finite keeps its start; the others end as if it were sound; the status says so."""
    start = solve(case.problem, "magnitude").mask
    sound = _answer(case.problem, name, start)
    with _broken_row(case.problem, 1):
        broken = _answer(case.problem, name, start)
    assert not sound.status.failed and broken.status.failed == (name not in ONE_SHOT), f"{name}: {broken.status}"
    others = torch.arange(len(start)) != 1
    assert torch.equal(broken.point[others], sound.point[others]), f"{name}: a sound band ends elsewhere"
    expected = start[1] if broken.status.failed else sound.point[1]
    assert torch.equal(broken.point[1], expected.to(broken.point.dtype)), f"{name}: a broken band left its start"
    for rows in (broken.relaxed, broken.weight):
        assert rows is None or bool(torch.isfinite(rows[others]).all())


def check_polish(case: Case, name: str) -> None:
    """A solver that polishes takes a start, ends in a mask, is named by ``polish_names``, and never makes it worse.

    One that judges masks after refitting may make them worse before.
    """
    solver = make_solver(name)
    assert (name in polish_names()) == solver.polishes
    assert solver.polishes or not solver.needs_moving_weights
    if not solver.polishes:
        return
    assert {"start", "time_limit_s"} <= solver.budgets() and solver.polisher() is None
    start = solve(case.problem, "magnitude").mask
    answer = solver.run(case.problem, Run(start=start))
    assert answer.point.dtype == torch.bool and case.rule.feasible(answer.point)
    assert solver.needs_moving_weights or case.value(answer.point) <= case.value(start) + case.margin


def _answer(problem: Problem, name: str, start: Tensor) -> Answer:
    """Run a solver in the least memory, without judging its answer."""
    solver = make_solver(name)
    most = min(default_iterations(solver), MOST_ITERATIONS) or None
    return solver.run(problem, Run(start=start, max_iterations=most, memory_bytes=least_memory(problem, solver, None)))


@contextmanager
def _broken_row(problem: Problem, row: int) -> Iterator[None]:
    """Let every band that has a row of ``problem`` find NaN there."""
    mark, original = problem.term[row, 0], Problem.rows

    def broken(self: Problem, index: slice | Tensor) -> Problem:
        piece: Problem = original(self, index)
        piece.term = torch.where(piece.term[:, :1] == mark, torch.nan, piece.term)
        return piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "rows", broken)
        yield
