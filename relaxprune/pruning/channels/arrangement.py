"""An order of the channels that may change places, and a better one for given scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relaxprune.problems import NM

from .channel_order import Gains, channel_order, gains_by_rows
from .channel_paths import ChannelPath


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Where the channels of a path are.

    Attributes:
        path: which channels may change places.
        cols: columns of the consumer.
        orders: for each orbit (size,) int64: its place p takes its channel orders[p].
    """

    path: ChannelPath
    cols: int
    orders: tuple[Tensor, ...]

    @classmethod
    def of_source(cls, path: ChannelPath, cols: int) -> Arrangement:
        """Return the order of the source."""
        return cls(path, cols, tuple(torch.arange(orbit.columns.shape[1]) for orbit in path.orbits))

    def columns(self) -> Tensor:
        """Return (cols,) int64: column c of the consumer is the source's column columns[c]."""
        columns = torch.arange(self.cols)
        for orbit, order in zip(self.path.orbits, self.orders, strict=True):
            columns[orbit.columns] = orbit.columns[:, order]
        return columns

    def rows(self) -> Tensor:
        """Return (rows,) int64: row r of each producer is the source's row rows[r]."""
        rows = torch.arange(self.path.rows)
        for orbit, order in zip(self.path.orbits, self.orders, strict=True):
            rows[orbit.rows] = orbit.rows[order]
        return rows

    def improved(self, scores: Tensor, pattern: NM, seed: int, gains: Gains = gains_by_rows) -> Arrangement:
        """Return an arrangement in which masks keep no less of some scores, found from this one.

        Args:
            scores: (rows, cols), at least 0, in the order of the source.
            pattern: the masks.
            seed: of the search.
            gains: as for ``channel_order``.
        """
        orders = []
        for orbit, order in zip(self.path.orbits, self.orders, strict=True):
            slots = orbit.columns[:, order].to(scores.device)
            stacked = torch.cat([scores[:, slot] for slot in slots])
            orders.append(order[channel_order(stacked, pattern.keep, pattern.group, seed, gains)])
        return replace(self, orders=tuple(orders))
