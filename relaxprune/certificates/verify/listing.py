"""Every mask of a tiny coupled block, for the method that looks at all of them, and the least objective of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from relaxprune.problems import RelaxPruneError

from .arrays import UNIT, Array, fractions
from .mask_set import MOST_MASKS, MaskSet, tile_masks, tiles
from .quadratics import Quadratics

_MASKS_AT_ONCE = 2**14
_TOO_MANY = f"the exact method looks at up to {MOST_MASKS} masks of a coupled block, and there are more"


def all_masks(block: MaskSet) -> Array:
    """Return the masks of a set that is one coupled block: (masks, rows, cols) bool.

    Raises:
        RelaxPruneError: there are more than 2^20.
    """
    rows, cols = block.kept.shape
    places = _places(rows, cols, block)
    kept, pruned = block.kept.reshape(-1)[places], block.pruned.reshape(-1)[places]
    cells = [_cell_masks(block, one, other) for one, other in zip(kept, pruned, strict=True)]
    counts = [len(cell) for cell in cells]
    total = math.prod(counts)
    if total > MOST_MASKS:
        raise RelaxPruneError(_TOO_MANY)
    masks = np.zeros((total, rows * cols), dtype=bool)
    for where, cell, chosen in zip(places, cells, np.unravel_index(np.arange(total), counts), strict=True):
        masks[:, where] = cell[chosen]
    return masks.reshape(total, rows, cols)


def _places(rows: int, cols: int, block: MaskSet) -> Array:
    """Return the entries, counted in reading order, that share counts: (cells, size)."""
    order = np.arange(rows * cols).reshape(rows, cols)
    if block.kind == "transposable":
        return tiles(order, block.width)
    lines: Array = order.reshape(-1, block.width or rows * cols)
    return lines


def _cell_masks(block: MaskSet, kept: Array, pruned: Array) -> Array:
    """Return the masks of one line or tile, flat, with its fixed entries: (masks, size) bool."""
    if block.kind == "transposable":
        masks = tile_masks(block.keep, block.width)
        return masks[masks[:, kept].all(axis=1) & ~masks[:, pruned].any(axis=1)]
    free, must = np.flatnonzero(~kept & ~pruned), int(kept.sum())
    most = min(block.keep - must, len(free))
    sizes = range(most + 1) if block.at_most else [block.keep - must]
    if sum(math.comb(len(free), size) for size in sizes) > MOST_MASKS:
        raise RelaxPruneError(_TOO_MANY)
    chosen = [some for size in sizes for some in itertools.combinations(free.tolist(), size)]
    masks = np.repeat(kept[None], len(chosen), axis=0)
    for line, some in zip(masks, chosen, strict=True):
        line[list(some)] = True
    return masks


def least_of_all(block: Quadratics, stored: float) -> Fraction:
    """Return a proven lower bound on the objective of all masks of one coupled block.

    A mask that the stored bound could exceed, seen in float64 with an allowance for its error, is judged in rationals.

    Args:
        block: the block, in float64.
        stored: the bound to judge.

    Raises:
        RelaxPruneError: there are more than 2^20 masks.
    """
    height, cols = block.factor.shape
    size = float(((np.abs(block.factor) * block.root).sum(axis=1) ** 2).sum() + np.abs(block.linear).sum())
    allowance = 2 * (height * cols + cols + 8) * UNIT * size
    return least_proven(
        all_masks(block.masks),
        lambda some: _values(block, some.astype(np.float64)) - allowance,
        lambda mask: block.rational().value(fractions(mask.astype(np.float64))).sum(),
        stored,
    )


def least_proven(
    masks: Array, rough: Callable[[Array], Array], exact: Callable[[Array], Fraction], stored: float
) -> Fraction:
    """Return the least bound of any mask: a rough one, or the exact value if that does not reach ``stored``.

    Args:
        masks: (masks, rows, cols) bool.
        rough: gives what float64 proves of some masks, (masks,).
        exact: gives the value of one mask.
        stored: the bound to judge.
    """
    least = []
    for start in range(0, len(masks), _MASKS_AT_ONCE):
        some = masks[start : start + _MASKS_AT_ONCE]
        values = rough(some)
        reached = values >= stored
        least += [exact(mask) for mask in some[~reached]]
        if reached.any():
            least.append(Fraction(float(values[reached].min())))
    return min(least)


def _values(block: Quadratics, masks: Array) -> Array:
    """Return the objectives of many masks of one coupled block: (masks,) float64 from (masks, height, cols)."""
    moved = (masks - block.offset) * block.factor
    values: Array = ((moved @ block.gram) * moved).sum(axis=(1, 2)) + (masks * block.linear).sum(axis=(1, 2))
    return values
