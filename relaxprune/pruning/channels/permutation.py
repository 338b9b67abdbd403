"""The order of a layer's columns, as a run records it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.json_files import Maybe, misfit

UNEQUAL = "put back: with its channels reordered the block does not put out what it did before"
_TUPLES = ("producers", "columns", "rows")
_SINCE = {"by": "saliency", "error_before": None, "error_after": None}  # which older records lack
_SHAPE = {
    **{name: str for name in ("layer", "reason", "by")},
    "block": int,
    **{name: Maybe(float) for name in ("kept_before", "kept_after", "error_before", "error_after")},
    "producers": [str],
    **{name: [int] for name in ("columns", "rows")},
}


@dataclass(frozen=True)
class Permutation:
    """The order of one pruned layer's columns, or why it was kept.

    Attributes:
        layer: module name of the layer whose columns are reordered, the consumer.
        block: index of its block.
        reason: why its columns stay as they were; "" if they are reordered.
        kept_before: share of the saliency that a mask can keep in the order of the source; None if no order was
            searched.
        kept_after: the same in the order found.
        producers: module names of the layers whose output rows (weight and bias) are reordered with them.
        columns: the layer's column c is the source's column columns[c]; empty if nothing is reordered.
        rows: each producer's row r is the source's row rows[r]; empty like the one before.
        by: how the order was searched, as in ``PruneOptions.permute_by``.
        error_before: relative error of a short solve in the order of the source; None unless searched by "error".
        error_after: the same in the order found.
    """

    layer: str
    block: int
    reason: str
    kept_before: float | None = None
    kept_after: float | None = None
    producers: tuple[str, ...] = ()
    columns: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    by: str = "saliency"
    error_before: float | None = None
    error_after: float | None = None

    @property
    def applied(self) -> bool:
        """Whether the layer's columns are reordered."""
        return not self.reason

    @property
    def put_back(self) -> bool:
        """Whether an order was found, and undone because the block computed something else with it."""
        return self.reason == UNEQUAL

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as plain numbers, strings and lists."""
        return {**dataclasses.asdict(self), **{name: list(getattr(self, name)) for name in _TUPLES}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Permutation:
        """Undo ``to_dict``.

        Raises:
            RelaxPruneError: missing or unknown keys, or a value of another kind.
        """
        data = {**_SINCE, **data} if data else data
        names = {field.name for field in dataclasses.fields(cls)}
        if set(data) != names:
            raise RelaxPruneError(f"a permutation must have exactly the keys {sorted(names)}, got {sorted(data)}")
        if wrong := misfit(data, _SHAPE):
            raise RelaxPruneError(f"{wrong!r} of the permutation of {data['layer']!r} has the wrong type")
        return cls(**{**data, **{name: tuple(data[name]) for name in _TUPLES}})
