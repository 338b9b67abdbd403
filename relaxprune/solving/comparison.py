"""Several solvers on one problem: one table, with failures as rows too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor

from relaxprune.options.solve_options import SolveOptions
from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.problems.errors import did_you_mean
from relaxprune.solvers import Solver, make_solver, solver_names
from relaxprune.solvers.base import BUDGETS

from .solution import Solution
from .solving import solve

SCHEMA_VERSION = 1
REFUSED = "REFUSED"
BROKE = "ERROR"
_HALVINGS = 6  # points on a solver's curve before its last one; together they cost about one more solve

_logger = logging.getLogger("relaxprune")


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(SolveOptions):
    """What is asked of every solver of a comparison.

    A solver gets only what it uses (``Solver.budgets()``); its row names the rest.

    Attributes:
        curves: add, for every iterative solver, whole solves with smaller iteration budgets: the points of a plot.
    """

    curves: bool = False

    def taken_by(self, solver: Solver) -> tuple[SolveOptions, tuple[str, ...]]:
        """Return what is asked of a solver, and the given budgets that it does not use."""
        honoured = solver.budgets()
        taken = {item.name: getattr(self, item.name) for item in fields(SolveOptions)}
        taken = {name: value for name, value in taken.items() if name in honoured or name not in BUDGETS}
        return SolveOptions(**taken), tuple(name for name in self.given() if name not in honoured)


@dataclass(frozen=True)
class Point:
    """The result of one solve with a given iteration budget, and its cost; names as in ``Solution``."""

    iterations: int
    seconds: float
    products: float
    objective: float
    relaxed_objective: float | None
    lower_bound: float
    relative_gap: float

    @classmethod
    def of(cls, solution: Solution) -> Point:
        """Take the numbers of a solution."""
        stats = solution.stats
        proven = (solution.relaxed_objective, solution.lower_bound, solution.relative_gap)
        return cls(stats.iterations, stats.seconds, stats.products, solution.objective, *proven)


@dataclass(frozen=True)
class ComparisonRow:
    """One solver's line of the table.

    Attributes:
        solver: its name.
        status: how it ended; ``REFUSED`` if it cannot take the problem, ``ERROR`` if it broke.
        message: the reason, if there is no answer; otherwise the status's advice.
        result: the last point, or None without an answer.
        relative_error: objective / reference, or None without an answer or a reference.
        curve: points of whole solves with growing budgets, ``result`` the last of them.
        options: the solver's effective options.
        failed: whether it broke.
        unused: what the comparison asks that the solver does not use.
    """

    solver: str
    status: str
    message: str
    result: Point | None = None
    relative_error: float | None = None
    curve: tuple[Point, ...] = ()
    options: dict[str, Any] | None = None
    failed: bool = False
    unused: tuple[str, ...] = ()

    @classmethod
    def of(cls, solution: Solution, unused: tuple[str, ...]) -> ComparisonRow:
        """Take the numbers of a solution."""
        point = Point.of(solution)
        return cls(
            solution.solver,
            solution.status.name,
            solution.status.value,
            point,
            solution.relative_error,
            (point,),
            solution.options,
            solution.status.failed,
            unused,
        )


@dataclass(frozen=True)
class Comparison:
    """All rows, by objective; those without an answer last."""

    problem: dict[str, Any]
    settings: dict[str, Any]
    rows: tuple[ComparisonRow, ...]

    @property
    def best_objective(self) -> float | None:
        """The lowest objective of any solver, None without an answer."""
        return min((row.result.objective for row in self.rows if row.result is not None), default=None)

    @property
    def best_lower_bound(self) -> float | None:
        """The highest bound that any solver's relaxed mask proved, None without an answer."""
        return max((row.result.lower_bound for row in self.rows if row.result is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "problem": self.problem,
            "settings": self.settings,
            "best_objective": self.best_objective,
            "best_lower_bound": self.best_lower_bound,
            "rows": [asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        """Return the table, the best of all, and the reasons of the rows without an answer."""
        head = ("solver", "objective", "relaxed", "bound", "gap", "status", "seconds", "products")
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        if self.best_objective is not None and self.best_lower_bound is not None:
            text.append(f"best objective {self.best_objective:.6g}, best bound {self.best_lower_bound:.6g}")
        text += [f"{row.solver}: does not use {', '.join(row.unused)}" for row in self.rows if row.unused]
        text += [f"{row.solver}: {row.message}" for row in self.rows if row.result is None]
        return "\n".join(line.rstrip() for line in text)


def compare(
    problem: Problem,
    solvers: Sequence[str] | None = None,
    *,
    options: ComparisonOptions | None = None,
    on_row: Callable[[ComparisonRow], None] | None = None,
    **words: Any,
) -> Comparison:
    """Solve one problem by several solvers.

    Args:
        problem: the problem.
        solvers: names; None takes every solver that the registry knows.
        options: what is asked of each of them.
        on_row: called with each row as soon as it is ready.
        **words: fields of ``ComparisonOptions``, which override ``options``.

    Returns:
        A Comparison; the row of a solver that refuses the problem, or breaks, says so.

    Raises:
        RelaxPruneError: no solver, one named twice or unknown, or a wrong argument; before any work.
    """
    options, unknown = ComparisonOptions.of(options).updated(words)
    for word in unknown:
        guess = did_you_mean(word, [item.name for item in fields(options)])
        raise RelaxPruneError(f"{word!r} is not an argument of compare, which gives all solvers the same{guess}")
    names = solver_names() if solvers is None else list(solvers)
    if not names or len(set(names)) != len(names):
        raise RelaxPruneError(f"solvers must name at least one solver, each once, got {', '.join(names) or 'none'}")
    for name in names:
        if name not in solver_names():
            make_solver(name)  # raises, with the closest name
    rows = []
    for name in names:
        rows.append(_row(problem, name, options))
        if on_row is not None:
            on_row(rows[-1])
    rows.sort(key=lambda row: float("inf") if row.result is None else row.result.objective)
    described = {"shape": list(problem.shape), "polytope": problem.polytope.to_dict(), "reference": problem.reference}
    given = {**vars(options), "start": "a mask" if isinstance(options.start, Tensor) else options.start}
    return Comparison(described, given, tuple(rows))


def _row(problem: Problem, name: str, options: ComparisonOptions) -> ComparisonRow:
    """Solve by one solver, and again with smaller budgets for its curve."""
    try:
        taken, unused = options.taken_by(make_solver(name))
        row = ComparisonRow.of(solve(problem, name, options=taken, throw=False), unused)
    except RelaxPruneError as error:
        return ComparisonRow(name, REFUSED, str(error))
    except Exception as error:  # a backend may raise anything: its row says so, and the others go on
        _logger.info("solver %s broke", name, exc_info=True)
        return ComparisonRow(name, BROKE, f"{type(error).__name__}: {error}", failed=True)
    return row if not options.curves or row.failed else _with_curve(problem, row, taken)


def _with_curve(problem: Problem, row: ComparisonRow, taken: SolveOptions) -> ComparisonRow:
    """Add whole solves with halved iteration budgets: what the solver really gives for less time."""
    assert row.result is not None
    if "max_iterations" not in make_solver(row.solver).budgets():
        return row
    budgets = sorted({row.result.iterations >> halving for halving in range(1, _HALVINGS + 1)} - {0})
    try:
        solutions = [
            solve(problem, row.solver, options=replace(taken, max_iterations=budget), throw=False) for budget in budgets
        ]
    except Exception as error:  # the row's own answer stands; the message says that the curve is missing
        _logger.info("solver %s broke on a smaller budget", row.solver, exc_info=True)
        return replace(row, message=f"{row.message} (no curve: {type(error).__name__}: {error})")
    # A budget too small for a backend leaves its start mask, which is not a result of the solver.
    return replace(row, curve=(*(Point.of(one) for one in solutions if not one.status.failed), row.result))


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    """Return a row's cells as text."""
    if row.result is None:
        return (row.solver, "-", "-", "-", "-", row.status, "-", "-")
    result, relaxed = row.result, row.result.relaxed_objective
    numbers = [f"{result.objective:.6g}", "-" if relaxed is None else f"{relaxed:.6g}", f"{result.lower_bound:.6g}"]
    cost = [f"{result.seconds:.2f}", f"{result.products:.6g}"]
    return (row.solver, *numbers, f"{result.relative_gap:.4f}", row.status, *cost)
