"""Every mask of a tiny coupled block, for the method that looks at all of them, and the least objective of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import numpy as np

from .arrays import UNIT, Array, fractions
from .mask_set import MOST_MASKS, MaskSet, tile_masks, tiles
from .quadratics import Quadratics
from .verified import CertificateError

_AT_ONCE = 2**22  # numbers
_MOST_ENTRIES = 2**29  # of all masks together
_TOO_MANY = f"the exact method looks at up to {MOST_MASKS} masks of a coupled block, and there are more"


def all_masks(block: MaskSet, numbers: int) -> Iterator[Array]:
    """Yield the masks of a set that is one coupled block, some at a time: (masks, rows, cols) bool.

    Args:
        block: the set.
        numbers: how many are held at once for every mask.

    Raises:
        CertificateError: there are more than 2^20, or they have more than 2^29 entries.
    """
    rows, cols = block.kept.shape
    places = _places(rows, cols, block)
    kept, pruned = block.kept.reshape(-1)[places], block.pruned.reshape(-1)[places]
    cells = [_cell_masks(block, one, other) for one, other in zip(kept, pruned, strict=True)]
    counts = [len(cell) for cell in cells]
    total = math.prod(counts)
    _check_number(total, rows * cols)
    step = max(1, _AT_ONCE // numbers)
    for start in range(0, total, step):
        some = np.arange(start, min(start + step, total))
        masks = np.zeros((len(some), rows * cols), dtype=bool)
        for where, cell, chosen in zip(places, cells, np.unravel_index(some, counts), strict=True):
            masks[:, where] = cell[chosen]
        yield masks.reshape(len(some), rows, cols)


def _check_number(masks: int, entries: int) -> None:
    """Refuse more masks, of so many entries each, than are looked at."""
    if masks > MOST_MASKS or masks * entries > _MOST_ENTRIES:
        raise CertificateError(_TOO_MANY)


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
    _check_number(sum(math.comb(len(free), size) for size in sizes), len(kept))
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
        CertificateError: there are more masks than are looked at.
    """
    height, cols = block.factor.shape
    reach = block.reach.sum(axis=1)
    size = float((reach * block.felt(reach)).sum() + np.abs(block.linear).sum())
    allowance = 2 * (height * cols + cols + block.more_terms + 8) * UNIT * size + height * block.lost()
    return least_proven(
        all_masks(block.masks, height * cols),
        lambda some: block.values(some.astype(np.float64)) - allowance,
        lambda mask: block.rational().value(fractions(mask.astype(np.float64))).sum(),
        stored,
    )


def least_proven(
    masks: Iterable[Array], rough: Callable[[Array], Array], exact: Callable[[Array], Fraction], stored: float
) -> Fraction:
    """Return the least bound of any mask: a rough one, or the exact value if that does not reach ``stored``.

    Args:
        masks: some masks at a time, (masks, rows, cols) bool.
        rough: gives what float64 proves of some masks, (masks,).
        exact: gives the value of one mask.
        stored: the bound to judge.
    """
    least = []
    for some in masks:
        values = rough(some)
        reached = values >= stored
        least += [exact(mask) for mask in some[~reached]]
        if reached.any():
            least.append(Fraction(float(values[reached].min())))
    return min(least)
