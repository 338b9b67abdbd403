"""Transposable masks of tiny problems by brute force, written without the package."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, product

import numpy as np
from torch import Tensor

from .enumeration import Array, numbers, values


@lru_cache(maxsize=32)
def tile_masks(group: int, keep: int) -> Array:
    """Every group x group mask with ``keep`` in each row and column: (masks, group, group) bool."""
    lines = [np.isin(np.arange(group), chosen) for chosen in combinations(range(group), keep)]
    grids = (np.array(rows) for rows in product(lines, repeat=group))
    return np.array([grid for grid in grids if (grid.sum(axis=0) == keep).all()], dtype=bool)


def feasible(mask: Tensor | Array, group: int, keep: int) -> bool:
    """Count by hand, tile by tile."""
    bits = np.asarray(mask)
    rows, cols = bits.shape
    tiles = [bits[i : i + group, j : j + group] for i in range(0, rows, group) for j in range(0, cols, group)]
    return bits.dtype == np.bool_ and all((tile.sum(axis=dim) == keep).all() for tile in tiles for dim in (0, 1))


def band_masks(cols: int, group: int, keep: int) -> Array:
    """Every mask of a band of one tile's height: (masks, group, cols) bool."""
    one = tile_masks(group, keep)
    picks = product(range(len(one)), repeat=cols // group)
    return np.array([np.concatenate([one[i] for i in pick], axis=1) for pick in picks], dtype=bool)


def allowed(masks: Array, kept: Tensor | None, pruned: Tensor | None) -> Array:
    """The masks that respect the entries fixed in this band."""
    good = np.ones(len(masks), dtype=bool)
    if kept is not None:
        good &= masks[:, kept.numpy()].all(axis=1)
    if pruned is not None:
        good &= ~masks[:, pruned.numpy()].any(axis=1)
    return masks[good]


def best_bands(
    weight: Tensor, gram: Tensor, group: int, keep: int, fixed: tuple[Tensor | None, Tensor | None] = (None, None)
) -> Array:
    """The smallest objective of each band over every feasible mask: (bands,)."""
    wide, matrix = numbers(weight), numbers(gram)
    masks = band_masks(weight.shape[1], group, keep)
    best = []
    for top in range(0, weight.shape[0], group):
        part = slice(top, top + group)
        inside = allowed(masks, *(None if entries is None else entries[part] for entries in fixed))
        best.append(values(wide[part], matrix, inside).min())
    return np.array(best)


def interchanges(mask: Array, group: int) -> Array:
    """Every mask that one interchange of two rows and two columns of a tile leads to: (masks, rows, cols) bool."""
    found = []
    rows, cols = mask.shape
    for top, first in product(range(0, rows, group), range(0, cols, group)):
        for i, k in combinations(range(top, top + group), 2):
            for j, m in combinations(range(first, first + group), 2):
                if mask[i, j] == mask[k, m] != mask[i, m] == mask[k, j]:
                    other = mask.copy()
                    other[np.ix_([i, k], [j, m])] = ~mask[np.ix_([i, k], [j, m])]
                    found.append(other)
    return np.array(found, dtype=bool).reshape(-1, rows, cols)


def interchange_gain(
    weight: Tensor,
    gram: Tensor,
    group: int,
    mask: Tensor | Array,
    fixed: tuple[Tensor | None, Tensor | None] = (None, None),
) -> float:
    """The most that one interchange improves a band, relative to the band's objective: all of them, from scratch."""
    bits, wide, matrix = np.asarray(mask), numbers(weight), numbers(gram)
    around = allowed(interchanges(bits, group), *fixed)
    worst = 0.0
    for top in range(0, len(bits), group):
        part = slice(top, top + group)
        inside = around[(around[:, part] != bits[part]).any(axis=(1, 2))][:, part]
        if not len(inside):
            continue
        now = float(values(wide[part], matrix, bits[part]))
        gain = now - float(values(wide[part], matrix, inside).min())
        if gain > 1e-14 * float((wide[part] ** 2 * matrix.diagonal()).sum()):
            worst = max(worst, gain / now if now > 0 else float("inf"))
    return worst
