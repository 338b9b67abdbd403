"""Statistics of one mask."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError


@dataclass(frozen=True)
class MaskStatistics:
    """The statistics of one mask.

    Attributes:
        name: of the parameter.
        rows, cols: its size.
        kept: number of kept weights.
        row_least, row_most: least and most kept share of a row.
        column_least, column_most: the same of a column.
        empty_rows, empty_columns: rows and columns that keep nothing.
        pattern: the N:M pattern, M of 4, 8 or 16, that every group has, such as "2:4"; "" for none.
    """

    name: str
    rows: int
    cols: int
    kept: int
    row_least: float
    row_most: float
    column_least: float
    column_most: float
    empty_rows: int
    empty_columns: int
    pattern: str

    @property
    def sparsity(self) -> float:
        """Fraction pruned."""
        return 1 - self.kept / (self.rows * self.cols)


def describe(name: str, mask: Tensor) -> MaskStatistics:
    """Return the statistics of a bool mask (rows, ...), whose further dimensions count as columns.

    Raises:
        RelaxPruneError: it has no entries.
    """
    if mask.numel() == 0:
        raise RelaxPruneError(f"mask {name!r} has shape {tuple(mask.shape)}, and so no entries")
    flat = mask.reshape(mask.shape[0], -1)
    rows, columns = flat.double().mean(dim=1), flat.double().mean(dim=0)
    return MaskStatistics(
        name=name,
        rows=flat.shape[0],
        cols=flat.shape[1],
        kept=int(flat.sum()),
        row_least=float(rows.min()),
        row_most=float(rows.max()),
        column_least=float(columns.min()),
        column_most=float(columns.max()),
        empty_rows=int((rows == 0).sum()),
        empty_columns=int((columns == 0).sum()),
        pattern=pattern_of(flat, float(rows.max())),
    )


def pattern_of(mask: Tensor, most_kept: float) -> str:
    """Return the N:M pattern that a mask (rows, cols) has, the shortest of equal ones; "" if there is none.

    Args:
        mask: (rows, cols) bool.
        most_kept: share that the fullest row keeps; a pattern that allows more says nothing.
    """
    found: tuple[float, str] = (1.0, "")
    for group in (4, 8, 16):
        if mask.shape[1] % group == 0:
            most = int(mask.reshape(mask.shape[0], -1, group).sum(dim=2).max())
            if most / group < found[0] and most / group <= most_kept + 1e-9:
                found = (most / group, f"{most}:{group}")
    return found[1]
