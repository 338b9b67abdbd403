"""The shape of a layer that a run prunes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedLayer:
    """One layer that will be pruned.

    Attributes:
        name: module name.
        kind: "Linear", "Conv1D" or "Conv2d".
        rows: outputs.
        cols: inputs.
        keep: entries kept in the whole matrix.
        block: index of its block; None outside the blocks, whose order is known only once the model runs.
    """

    name: str
    kind: str
    rows: int
    cols: int
    keep: int
    block: int | None
