"""Transposable N:M masks: W and its transpose both keep n of every m consecutive entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..checks import whole_number
from ..errors import RelaxPruneError
from ..precision import UNIT_ROUNDOFF
from .base import Polytope, Shape
from .nm import NM
from .selection import counts_within, in_box, with_fixed
from .transposable_oracle import cheapest, from_tiles, prices, to_tiles


@dataclass(frozen=True)
class TransposableNM(Polytope):
    """Masks that keep exactly ``keep`` in every row and every column of each group x group tile.

    {m ∈ [0, 1]^(rows × cols) : Σ_{j in T} m_ij = keep for every row i of every tile T, Σ_{i in T} m_ij = keep for every
    column j of every tile T}. Integral, since the constraints of a tile are those of a bipartite graph. Each run of
    ``group`` rows is a coupled block. The linear oracle is exact: see ``transposable_oracle``. There is no "at most"
    set: ``at_most_set`` returns the set itself.

    Transposable masks: Hubara et al., NeurIPS 2021 (arXiv 2102.08124); for pruned language models: TSENOR (arXiv
    2505.23949).

    Args:
        keep: entries KEPT in each row and column of a tile.
        group: height and width of a tile; must divide rows and columns of the weight.
    """

    keep: int
    group: int
    kind: ClassVar[str] = "transposable"

    def __post_init__(self) -> None:
        """Check the options that need no shape."""
        whole_number("group", self.group, 1)
        whole_number("keep", self.keep, 0)
        if self.keep > self.group:
            raise RelaxPruneError(f"keep is {self.keep}, but a row of a tile has only {self.group} entries")

    @classmethod
    def from_pattern(cls, pattern: str) -> Self:
        """Read ``"2:4"`` as "keep 2 in every row and every column of each 4 x 4 tile"."""
        rows = NM.from_pattern(pattern)
        return cls(rows.keep, rows.group)

    def validate(self, shape: Shape) -> None:
        """Raise RelaxPruneError if ``group`` does not divide rows and columns."""
        for size, name in zip(shape, ("rows", "columns"), strict=True):
            if size % self.group:
                raise RelaxPruneError(f"group is {self.group}, which does not divide the {size} {name} of the weight")

    def kept(self, shape: Shape) -> int:
        """Return the number of kept entries of a (rows, cols) mask."""
        return shape[0] * (shape[1] // self.group) * self.keep

    def rows_per_block(self, shape: Shape) -> int:
        """Return ``group``: the rows of a tile share its column counts."""
        return self.group

    def group_size(self, shape: Shape) -> int:
        """Return ``group``."""
        return self.group

    def counts_columns(self) -> bool:
        """Return True: moves are interchanges of two rows and two columns of a tile."""
        return True

    def cells(self, shape: Shape) -> tuple[Tensor, int]:
        """Return the rows and columns of the tiles of one coupled block, and ``keep``."""
        index = torch.arange(self.group * shape[1]).view(self.group, shape[1])
        return torch.cat([index.reshape(-1, self.group), index.T]), self.keep

    def with_share(self, share: float) -> TransposableNM:
        """Return the set with floor(share · keep); each of its masks is part of one with ``keep``."""
        return TransposableNM(int(share * self.keep + 1e-9), self.group)

    def on_columns(self, start: int, stop: int, shape: Shape) -> TransposableNM | None:
        """Return the set itself, between tiles."""
        return None if start % self.group or stop % self.group else self

    def lmo(self, gradient: Tensor) -> Tensor:
        """Solve every tile's transportation problem; infinite costs are obeyed if a mask can obey them."""
        return self._cheapest(gradient).to(gradient.dtype)

    def lmo_bound(self, gradient: Tensor, kept: Tensor | None = None, pruned: Tensor | None = None) -> Tensor:
        """Bound ⟨gradient, v⟩ by linear programming duality.

        Row and column prices u, v prove keep · (Σu + Σv) + Σ min(0, g − u − v) per tile, where entries fixed to kept
        count g − u − v and those fixed to pruned 0. The oracle's mask gives the prices, but the bound does not rely on
        it, and the worst rounding is subtracted.
        """
        wide = gradient.to(torch.float64)
        forced = with_fixed(wide, kept, pruned, -torch.inf)
        rows, columns = prices(to_tiles(forced, self.group), to_tiles(self._cheapest(forced), self.group))
        reduced = to_tiles(wide, self.group) - rows.unsqueeze(1) - columns
        counted = reduced.clamp(max=0)
        if kept is not None:
            counted = torch.where(to_tiles(kept, self.group), reduced, counted)
        if pruned is not None:
            counted = counted.masked_fill(to_tiles(pruned, self.group), 0.0)
        value = self.keep * (rows.sum(dim=0) + columns.sum(dim=0)) + counted.sum(dim=(0, 1))
        # Reduced costs are rounded twice; then every term enters a sum over its tile and one over the coupled block.
        size = rows.abs().sum(dim=0) + columns.abs().sum(dim=0)
        terms = self.group**2 + wide.shape[1] // self.group + 16
        slack = 2 * UNIT_ROUNDOFF * terms * (self.group * size + counted.abs().sum(dim=(0, 1)))
        return (value - slack).view(wide.shape[0] // self.group, -1).sum(dim=1)

    def prices(self, gradient: Tensor) -> Tensor:
        """Return the column prices of every tile: counts of columns join the rows."""
        tiles = to_tiles(gradient, self.group)
        _, columns = prices(tiles, to_tiles(self._cheapest(gradient), self.group))
        return from_tiles(columns.expand_as(tiles).contiguous(), gradient.shape[0], gradient.shape[1])

    def round(self, point: Tensor) -> Tensor:
        """Keep the mask of the largest sum; ties are broken the same way every time."""
        return self._cheapest(-point)

    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        """Return whether the box and the counts of every tile's rows and columns hold up to ``tolerance``."""
        tiles = to_tiles(point.to(torch.float64), self.group)
        return in_box(tiles, tolerance) and all(
            counts_within(tiles.sum(dim=dim), self.keep, False, tolerance) for dim in (0, 1)
        )

    def _cheapest(self, costs: Tensor) -> Tensor:
        """Return the cheapest mask, (rows, cols) bool."""
        return from_tiles(cheapest(to_tiles(costs, self.group), self.keep), costs.shape[0], costs.shape[1])
