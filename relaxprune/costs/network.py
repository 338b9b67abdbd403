"""What ranks send each other in a run: partial sums, masks, and new weights."""

from __future__ import annotations

from collections.abc import Sequence

from .planned_layer import PlannedLayer

_SUM_BYTES = 8  # partial sums of Grams are float64


def network_bytes(
    layers: Sequence[PlannedLayer], widths: Sequence[int], ranks: int, *, sums: int = 1, moved_item: int = 0
) -> dict[str, int]:
    """Return the bytes that all ranks together receive, by stage.

    A Gram is summed over ranks and every rank gets it: 2 (ranks − 1) times its size. A mask, a bit for each entry, and
    the new values of a layer whose weights move go from the rank that solved it to all others.

    Args:
        layers: what is pruned.
        widths: the columns of every Gram of the run.
        ranks: how many.
        sums: products of inputs for each Gram, as in ``gram_sums``.
        moved_item: bytes of a weight if weights move, else 0.
    """
    others = ranks - 1
    entries = sum(layer.rows * layer.cols for layer in layers)
    return {
        "statistics": 2 * others * sums * _SUM_BYTES * sum(width**2 for width in widths),
        "solve": others * (sum(-(-layer.rows * layer.cols // 8) for layer in layers) + moved_item * entries),
    }
