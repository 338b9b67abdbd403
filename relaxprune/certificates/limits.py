"""Checks of what is asked of a certificate: limits that the method uses, and few enough masks to try them all."""

from __future__ import annotations

from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.solvers import make_solver


def check_limits(method: str, rows: object, time_limit_s: float | None) -> None:
    """Raise RelaxPruneError for a limit that the method does not use."""
    for name, value, methods in (("rows", rows, ("diagonal", "sdp")), ("time_limit_s", time_limit_s, ("sdp",))):
        if value is not None and method not in methods:
            raise RelaxPruneError(f"{name} is only for {' and '.join(methods)}, got it for method {method!r}")


def check_enumerable(problem: Problem) -> None:
    """Raise RelaxPruneError if a coupled block has too many masks to try them all."""
    over = problem.polytope.chosen_from()  # rows that are solved alone
    try:
        make_solver("enumerate").check(problem if over is None else problem.over(over))
    except RelaxPruneError as error:
        raise RelaxPruneError(
            f"method 'exact' tries every mask of a coupled block, up to 2^20, and blocks of {problem.polytope!r} over "
            f"{problem.shape[1]} columns have more; leave it out or use 'sdp'"
        ) from error
