"""The counts inside a row: what a row's own bound may add to its objective."""

from __future__ import annotations

from relaxprune.problems import Problem


def row_counts(problem: Problem) -> tuple[int, int] | None:
    """Return the size of the groups of columns that share a count inside one row, and how many each keeps.

    None if every count spans several rows: no ρ may be used then.
    """
    polytope, shape = problem.polytope, problem.shape
    size = polytope.group_size(shape)
    if polytope.rows_per_block(shape) > 1 and not polytope.counts_columns():
        return None
    return size, polytope.kept(shape) * size // (shape[0] * shape[1])
