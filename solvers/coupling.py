"""Which solvers take an objective that couples rows."""

from __future__ import annotations

from relaxprune.problems import Problem, RelaxPruneError

from .base import Solver


def check_coupling(solver: Solver, problem: Problem) -> None:
    """Raise RelaxPruneError if rows are coupled by the objective, and the solver treats them one by one."""
    if problem.minimised.outputs is not None and not solver.couples_rows:
        raise RelaxPruneError(
            f"solver {solver.name!r} treats rows one by one, but outputs couples them; use fw, fista or swap, which "
            "move all rows together"
        )
