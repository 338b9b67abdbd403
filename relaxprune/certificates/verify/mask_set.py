"""The sets of masks once more, for verification: counts, feasibility and least sums, from the description alone.

Nothing here is shared with the oracles that made the bounds. Arrays may hold float64 or ``Fraction`` (dtype object).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from relaxprune.problems import Polytope, RelaxPruneError

from .arrays import UNIT, Array, sum_error
from .verified import CertificateError

MOST_MASKS = 2**20  # of a coupled block, where all are looked at
_PART = 2**21  # entries
_LISTED_TILE = 4  # tiles up to this size are minimised by listing their masks


@dataclass(frozen=True, eq=False)
class MaskSet:
    """A set of masks as lines of entries that share a count.

    Attributes:
        kind: ``"ksparse"``, ``"nm"``, ``"transposable"`` or ``"hybrid"``.
        keep: entries kept in a line.
        width: entries of a line; 0 for the whole matrix.
        height: rows of a coupled block; 0 for the whole matrix.
        at_most: fewer may be kept.
        kept, pruned: (rows, cols) bool, fixed entries.
        dense, tile: of a hybrid set, how many tiles of so many rows are kept whole.
    """

    kind: str
    keep: int
    width: int
    height: int
    at_most: bool
    kept: Array
    pruned: Array
    dense: int = 0
    tile: int = 1

    @classmethod
    def of(cls, polytope: Polytope, shape: tuple[int, int], joined: bool = False) -> MaskSet:
        """Write out a polytope for masks of ``shape``; ``joined``: all rows are one coupled block.

        Raises:
            RelaxPruneError: a kind of set that verification does not know.
        """
        options = polytope.to_dict()
        kind, per = str(options["kind"]), options.get("per", "row")
        if kind not in ("ksparse", "nm", "transposable", "hybrid"):
            raise RelaxPruneError(f"verification knows ksparse, nm, transposable and hybrid sets, got {kind!r}")
        whole = kind == "ksparse" and per == "layer" and shape[0] > 1
        entries = (np.zeros(shape, bool) if item is None else item.cpu().numpy().copy() for item in polytope.fixed())
        given = cls(
            kind,
            int(options["keep"]),
            0 if whole else shape[1] if kind == "ksparse" else int(options["group"]),
            _height(kind, options, whole or joined),
            bool(options.get("at_most", False)),
            next(entries),
            next(entries),
            int(options.get("dense", 0)),
            int(options.get("tile", 1)),
        )
        return given._completed() if given.width and kind != "hybrid" else given

    def only_dense(self) -> Array:
        """Return the rows of a hybrid set's tiles that keep more fixed entries than N:M allows: (rows,) bool."""
        many = self._lines(self.kept).sum(axis=1).reshape(len(self.kept), -1).max(axis=1) > self.keep
        tiles_of: Array = np.repeat(many.reshape(-1, self.tile).any(axis=1), self.tile)
        return tiles_of

    def _completed(self) -> MaskSet:
        """Return the same set with those entries fixed, too, that the fixed ones leave no choice for."""
        kept, pruned = self._lines(self.kept), self._lines(self.pruned)
        full = kept.sum(axis=1, keepdims=True) == self.keep
        pruned = pruned | (full & ~kept)
        bare = pruned.sum(axis=1, keepdims=True) == self.width - self.keep
        kept = kept if self.at_most else kept | (bare & ~pruned)
        return replace(self, kept=kept.reshape(self.kept.shape), pruned=pruned.reshape(self.kept.shape))

    @property
    def row_count(self) -> tuple[int, int] | None:
        """Size and count of the groups inside a row, or None if no count is a row's own."""
        return (self.width, self.keep) if self.width and self.kind != "hybrid" else None

    def rows_per_block(self) -> int:
        """Return the height of a coupled block."""
        return self.height or len(self.kept)

    def part(self, rows: slice) -> MaskSet:
        """Return the set of a run of whole coupled blocks."""
        return replace(self, kept=self.kept[rows], pruned=self.pruned[rows])

    def parts(self) -> list[slice]:
        """Return runs of whole coupled blocks of a convenient size, as slices of rows."""
        (rows, cols), height = self.kept.shape, self.rows_per_block()
        step = height * max(1, _PART // (height * cols))
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]

    def block_sum(self, values: Array) -> Array:
        """Sum (rows,) or (rows, cols) over coupled blocks: (blocks,)."""
        sums: Array = values.reshape(len(values) // self.rows_per_block(), -1).sum(axis=1)
        return sums

    def feasible(self, mask: Array) -> bool:
        """Return whether a (rows, cols) bool mask belongs to the set."""
        if (self.kept & ~mask).any() or (self.pruned & mask).any():
            return False
        counts = self._lines(mask).sum(axis=1)
        if self.kind == "transposable":
            columns = mask.reshape(-1, self.width, mask.shape[1]).sum(axis=1)
            return bool((counts == self.keep).all() and (columns == self.keep).all())
        if self.kind == "hybrid":
            whole: Array = np.all(mask.reshape(-1, self.tile * mask.shape[1]), axis=1)
            sparse: Array = np.all((counts == self.keep).reshape(len(whole), -1), axis=1)
            return bool((whole | sparse).all() and whole.sum() == self.dense)
        return bool((counts <= self.keep).all() if self.at_most else (counts == self.keep).all())

    def least(self, costs: Array) -> Array:
        """Return the least Σ costs · mask of each coupled block, (blocks,), from ``costs`` (rows, cols).

        Raises:
            OverflowError: costs that are not finite.
        """
        if costs.dtype != object and not np.isfinite(costs).all():
            raise OverflowError("slopes that are not finite")
        if self.kind == "transposable":
            return self._least_of_tiles(costs)
        if self.kind == "hybrid":
            return self._least_of_choices(costs)
        kept, pruned = self._lines(self.kept), self._lines(self.pruned)
        lines = self._lines(costs)
        key = np.where(kept, -np.inf, np.where(pruned, np.inf, lines))
        first = np.argsort(key, axis=1, kind="stable")[:, : self.keep]
        chosen = np.take_along_axis(lines, first, axis=1)
        if self.at_most:
            optional = np.where(np.take_along_axis(pruned, first, axis=1), 0 * chosen, np.minimum(chosen, 0 * chosen))
            chosen = np.where(np.take_along_axis(kept, first, axis=1), chosen, optional)
        blocks = len(costs) // self.rows_per_block()
        sums: Array = chosen.reshape(blocks, -1).sum(axis=1)
        return sums

    def least_error(self) -> float:
        """Bound the error of ``least`` in float64, relative to the sum of the costs' sizes."""
        listed = self.width**2 * UNIT if self.kind == "transposable" and self.width <= _LISTED_TILE else 0.0
        twice = 4 if self.kind == "hybrid" else 1  # entries of a tile are summed as N:M, as dense, and in a difference
        return listed + twice * sum_error(self.rows_per_block() * self.kept.shape[1])

    def _lines(self, values: Array) -> Array:
        """Return one line per count: (lines, width)."""
        return values.reshape(-1, self.width) if self.width else values.reshape(1, -1)

    def least_chosen(self, apart: Array, whole: Array) -> Any:
        """Return the least sum over the choices of dense tiles, from what rows (rows,) cost as N:M and as dense.

        A tile with an entry that is fixed to pruned is not dense, one with more kept entries than N:M allows is.
        """
        rank = self.pruned.any(axis=1).astype(int) - self.only_dense()
        ranks = rank.reshape(-1, self.tile).sum(axis=1)
        more = (whole - apart).reshape(-1, self.tile).sum(axis=1)
        order = sorted(range(len(more)), key=lambda place: (ranks[place], more[place]))
        return apart.sum() + more[order[: self.dense]].sum()

    def _least_of_choices(self, costs: Array) -> Array:
        """Minimise over a hybrid set: N:M in every row, and the tiles in which the rest costs least kept whole."""
        rows = replace(self, kind="nm", height=1)
        found = self.least_chosen(rows.least(costs), costs.sum(axis=1))
        return np.array([found], dtype=costs.dtype)

    def _least_of_tiles(self, costs: Array) -> Array:
        """Minimise every tile: by its list of masks while that is short, else as a flow in whole numbers."""
        each, kept, pruned = (tiles(values, self.width) for values in (costs, self.kept, self.pruned))
        if self.width <= _LISTED_TILE:
            masks = tile_masks(self.keep, self.width)
            sums = each @ masks.T.astype(each.dtype)
            broken = (kept.astype(int) @ ~masks.T + pruned.astype(int) @ masks.T) > 0
            least = np.where(broken, np.inf, sums).min(axis=1)
        else:
            least = np.empty(len(each), dtype=each.dtype)
            for place in range(len(each)):
                mask = _flow(each[place], kept[place], pruned[place], self.keep, self.width)
                least[place] = each[place][mask].sum()
        total: Array = least.reshape(len(costs) // self.width, -1).sum(axis=1)
        return total


def _height(kind: str, options: dict[str, Any], whole: bool) -> int:
    """Return the rows of a coupled block, 0 for all of them."""
    if whole or kind == "hybrid":
        return 0
    return int(options["group"]) if kind == "transposable" else 1


def tiles(values: Array, size: int) -> Array:
    """Return tiles in reading order, each flat: (tiles, size²)."""
    rows, cols = values.shape
    return values.reshape(rows // size, size, cols // size, size).swapaxes(1, 2).reshape(-1, size * size)


@lru_cache(maxsize=8)
def tile_masks(keep: int, size: int) -> Array:
    """Return every mask of a tile: (masks, size²) bool.

    Raises:
        CertificateError: there are more than 2^20, or as many beginnings of one.
    """
    lines = np.array([line for line in itertools.product((False, True), repeat=size) if sum(line) == keep])
    masks = np.zeros((1, 0, size), dtype=bool)
    for _ in range(size):
        if len(masks) * len(lines) > MOST_MASKS * 2:
            raise CertificateError(f"tiles of {size} x {size} entries have more than {MOST_MASKS} masks to look at")
        longer = np.concatenate(
            [np.repeat(masks, len(lines), axis=0), np.tile(lines, (len(masks), 1))[:, None]], axis=1
        )
        masks = longer[(longer.sum(axis=1) <= keep).all(axis=1)]
    found: Array = masks[(masks.sum(axis=1) == keep).all(axis=1)]
    return found.reshape(len(found), size * size)


def _flow(costs: Array, kept: Array, pruned: Array, keep: int, size: int) -> Array:
    """Return a cheapest mask of one tile, (size²,) bool, by network simplex in whole numbers, so without rounding."""
    import networkx as nx

    exact = [Fraction(value) for value in costs.tolist()]
    unit = math.lcm(*(value.denominator for value in exact))
    scaled = [value * unit for value in exact]
    dear = 1 + 2 * int(sum(abs(value) for value in scaled))
    graph = nx.DiGraph()
    for line in range(size):
        graph.add_node(("row", line), demand=-keep)
        graph.add_node(("column", line), demand=keep)
    for place, value in enumerate(scaled):
        cost = int(value) + dear * (int(pruned[place]) - int(kept[place]))
        graph.add_edge(("row", place // size), ("column", place % size), capacity=1, weight=cost)
    _, flow = nx.network_simplex(graph)
    return np.array([flow["row", place // size]["column", place % size] > 0 for place in range(size * size)])
