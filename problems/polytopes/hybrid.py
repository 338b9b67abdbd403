"""Hybrid masks: every row, or every tile of rows, is either dense or N:M, under one budget."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import fraction, whole_number
from ..errors import RelaxPruneError
from .base import Polytope, Shape
from .nm import NM
from .selection import in_box, largest_stable
from .vertices import VERTEX_LIMIT

_PATTERN = re.compile(r"(?P<base>[^,]*),\s*dense\s*=\s*(?P<dense>[^,\s]+)\s*(?:,\s*tile\s*=\s*(?P<tile>\d+)\s*)?")


@dataclass(frozen=True)
class Hybrid(Polytope):
    """Masks that keep ``dense`` tiles of rows whole, and exactly ``keep`` of every ``group`` columns elsewhere.

    A tile u is a run of ``tile`` rows. With y_u, the share of it that is dense, the set is

        {m : 0 ≤ y_u ≤ m_ij ≤ 1 and Σ_{j in group g} m_ij = keep + (group − keep) y_u for all rows i of u and groups g,
        Σ_u y_u = dense}.

    It is integral: a tile's part is the hull of one point, all ones, and an N:M set, joined by y_u, and the y form a
    hypersimplex. The oracle is exact: dense costs more than N:M by the sum of what N:M leaves out, and the
    ``dense`` tiles where that is least are dense. All rows share the count of tiles and are one coupled block; but a
    row's best N:M mask does not depend on which others are dense, so ``solve`` finds N:M masks for all rows, and the
    choice of tiles is then exact (``chosen_from``, ``choice``).

    Tiles that are dense or 2:4: PATCH (arXiv 2509.23410); regions of each: SpenseGPT (arXiv 2606.10445).

    Args:
        keep: entries KEPT in a group of a row that is not dense; fewer than ``group``.
        group: consecutive columns in a group; must divide the columns of the weight.
        dense: number of dense tiles.
        tile: rows of a tile; must divide the rows of the weight.
    """

    keep: int
    group: int
    dense: int
    tile: int = 1
    kind: ClassVar[str] = "hybrid"

    def __post_init__(self) -> None:
        """Check the options that need no shape."""
        whole_number("group", self.group, 1)
        whole_number("keep", self.keep, 0)
        whole_number("dense", self.dense, 0)
        whole_number("tile", self.tile, 1)
        if self.keep >= self.group:
            raise RelaxPruneError(f"keep must be below group in a hybrid set, got {self.keep} of {self.group}")

    @classmethod
    def from_share(cls, pattern: str, share: float, shape: Shape, tile: int = 1) -> Hybrid:
        """Return the set in which floor(tiles · ``share``) tiles of a (rows, cols) weight are dense.

        Args:
            pattern: of the other rows, such as ``"2:4"``.
            share: of the tiles, in [0, 1].
            shape: (rows, cols) of the weight.
            tile: rows of a tile.
        """
        base = NM.from_pattern(pattern)
        fraction("share", share)
        whole_number("tile", tile, 1)
        return cls(base.keep, base.group, int(shape[0] // tile * share + 1e-9), tile)

    @classmethod
    def from_sparsity(cls, pattern: str, sparsity: float, shape: Shape, tile: int = 1) -> Hybrid:
        """Return the set with as many dense tiles as leave a fraction of at least ``sparsity`` pruned.

        Args:
            pattern: of the other rows, such as ``"2:4"``, which prunes half.
            sparsity: from 0 to what the pattern alone prunes.
            shape: (rows, cols) of the weight.
            tile: rows of a tile.
        """
        base = NM.from_pattern(pattern)
        fraction("sparsity", sparsity)
        most = 1 - base.keep / base.group
        if sparsity > most:
            raise RelaxPruneError(f"sparsity is {sparsity}, but {pattern} prunes no more than {most:g}")
        return cls.from_share(pattern, 1 - sparsity / most if most else 1.0, shape, tile)

    @classmethod
    def from_pattern(cls, pattern: str, shape: Shape) -> Hybrid:
        """Read ``"2:4,dense=0.25"`` or ``"2:4,dense=0.25,tile=64"`` for a weight of (rows, cols) ``shape``."""
        base, share, tile = cls.parsed(pattern)
        return cls.from_share(base, share, shape, tile)

    @staticmethod
    def parsed(pattern: str) -> tuple[str, float, int]:
        """Return the N:M pattern, the share of dense tiles and the rows of a tile that ``pattern`` names.

        Raises:
            RelaxPruneError: it names none, the share is not in [0, 1], or N:M prunes nothing.
        """
        match = _PATTERN.fullmatch(pattern)
        if match is None:
            raise RelaxPruneError(
                f'pattern must look like "2:4" or "2:4,dense=0.25,tile=64" (a quarter of the tiles '
                f"of 64 rows dense), got {pattern!r}"
            )
        try:
            share = float(match["dense"].removesuffix("%")) / (100 if match["dense"].endswith("%") else 1)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise RelaxPruneError(f"dense in pattern {pattern!r} must be a share from 0 to 1, got {match['dense']}")
        tile = int(match["tile"] or 1)
        whole_number("tile", tile, 1)
        base = NM.from_pattern(match["base"])
        if base.keep >= base.group:
            raise RelaxPruneError(f"pattern {pattern!r} prunes nothing: N must be below M in N:M with dense")
        return match["base"].strip(), share, tile

    @property
    def base(self) -> NM:
        """The set of the rows that are not dense."""
        return NM(self.keep, self.group)

    def validate(self, shape: Shape) -> None:
        """Raise RelaxPruneError if tiles and groups do not divide the weight, or ``dense`` exceeds the tiles."""
        self.base.validate(shape)
        if shape[0] % self.tile:
            raise RelaxPruneError(f"tile is {self.tile}, which does not divide the {shape[0]} rows of the weight")
        if self.dense > shape[0] // self.tile:
            raise RelaxPruneError(f"dense is {self.dense}, but the weight has {shape[0] // self.tile} tiles of rows")

    def kept(self, shape: Shape) -> int:
        """Return the number of kept entries of a (rows, cols) mask."""
        whole = self.dense * self.tile
        return whole * shape[1] + (shape[0] - whole) * (shape[1] // self.group) * self.keep

    def rows_per_block(self, shape: Shape) -> int:
        """Return all rows: they share the count of dense tiles."""
        return shape[0]

    def group_size(self, shape: Shape) -> int:
        """Return ``group``: exchanges inside a group stay in the set."""
        return self.group

    def separable(self, shape: Shape) -> bool:
        """Return False: the count of a group depends on whether its row is dense."""
        return False

    def cells(self, shape: Shape) -> tuple[Tensor, int]:
        """Raise RelaxPruneError: no entries share a count that is the same in all masks."""
        raise RelaxPruneError(
            "a hybrid set has no counts that all of its masks share; solve takes it apart into rows, other callers can "
            "start from chosen_from()"
        )

    def rows(self, index: Tensor | slice) -> Hybrid:
        """Raise RelaxPruneError: the rows share a count."""
        raise RelaxPruneError("a hybrid set couples all rows and cannot be split into rows")

    def with_share(self, share: float) -> Hybrid:
        """Return the set with floor(share · keep) and floor(share · dense); its masks are parts of this one's."""
        keep, dense = (int(share * count + 1e-9) for count in (self.keep, self.dense))
        return Hybrid(keep, self.group, dense, self.tile)

    def chosen_from(self) -> NM:
        """Return the N:M set, over which every row is solved alone."""
        return self.base

    def only_dense(self, kept: Tensor) -> Tensor:
        """Return the rows of tiles in which some group has more than ``keep`` of the entries ``kept``."""
        many = kept.view(len(kept), -1, self.group).sum(dim=2).amax(dim=1) > self.keep
        return many.view(-1, self.tile).any(dim=1).repeat_interleave(self.tile)

    def choice(self, saved: Tensor) -> Tensor:
        """Return the rows that are dense where that saves most: exact, the first tiles of equal ones.

        Args:
            saved: (rows,), what leaving each row dense saves; −∞ where that is not allowed.

        Returns:
            (rows,) bool.
        """
        tiles = saved.view(-1, self.tile).sum(dim=1).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        return largest_stable(tiles.unsqueeze(0), self.dense).squeeze(0).repeat_interleave(self.tile)

    def lmo(self, gradient: Tensor) -> Tensor:
        """Take the cheapest N:M mask of every row, and make those tiles dense where the rest costs least."""
        vertex = self.base.lmo(gradient)
        return self._with_dense(vertex, -gradient)

    def face_lmo(self, gradient: Tensor, point: Tensor, tolerance: float = 0.0) -> Tensor:
        """Minimise ⟨gradient, v⟩ over the minimal face that contains ``point``.

        In a tile that is partly dense an entry no larger than y is kept by no N:M mask of the face; a tile with y at 0
        or 1 stays so.
        """
        share = self._shares(point)  # (rows,)
        column = share.unsqueeze(1)
        lost = (point <= tolerance) | ((point <= column + tolerance) & (point < 1 - tolerance))
        costs = gradient.masked_fill(lost, torch.inf).masked_fill(~lost & (point >= 1 - tolerance), -torch.inf)
        vertex = self.base.lmo(costs)
        saved = -(gradient * (1 - vertex)).sum(dim=1)
        rounding = 8 * point.shape[1] * torch.finfo(point.dtype).eps
        edge = max(tolerance, rounding)
        saved = saved.masked_fill(share <= edge, -torch.inf).masked_fill(share >= 1 - edge, torch.inf)
        return torch.where(self.choice(saved).unsqueeze(1), 1.0, vertex).to(gradient.dtype)

    def round(self, point: Tensor) -> Tensor:
        """Keep the mask of the largest sum, ties by the lowest column and the first tiles."""
        return self._with_dense(self.base.round(point), point)

    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        """Return whether box, groups and the count of dense tiles hold up to ``tolerance``."""
        values = point.to(torch.float64)
        share = self._shares(values)
        column = share.unsqueeze(1)
        sums = values.view(len(values), -1, self.group).sum(dim=2)
        tiles = share.view(-1, self.tile)
        return (
            in_box(values, tolerance)
            and bool((values >= column - tolerance).all())
            and bool(((sums - self.keep - (self.group - self.keep) * column).abs() <= tolerance).all())
            and bool(((tiles - tiles[:, :1]).abs() <= tolerance).all())
            and bool((tiles[:, 0].sum() - self.dense).abs() <= tolerance)
        )

    def vertices(self, shape: Shape) -> Tensor:
        """Return every mask of a tiny (rows, cols) weight: (masks, rows, cols) bool.

        Raises:
            RelaxPruneError: more than 2^20 masks.
        """
        tiles = shape[0] // self.tile
        others = shape[0] - self.dense * self.tile
        lines = math.comb(self.group, self.keep) ** (shape[1] // self.group)
        if math.comb(tiles, self.dense) * lines**others > VERTEX_LIMIT:
            raise RelaxPruneError(f"a coupled block may have at most {VERTEX_LIMIT} masks to be listed, not more")
        options = list(self.base.vertices((1, shape[1])).squeeze(1))
        whole = torch.ones(shape[1], dtype=torch.bool)
        found = []
        for chosen in itertools.combinations(range(tiles), self.dense):
            rows = [[whole] if row // self.tile in chosen else options for row in range(shape[0])]
            found += [torch.stack(mask) for mask in itertools.product(*rows)]
        return torch.stack(found)

    def _shares(self, point: Tensor) -> Tensor:
        """Return y of every row of a point in the set, from its sum: (rows,)."""
        groups = point.shape[1] // self.group
        return (point.sum(dim=1) - groups * self.keep) / (groups * (self.group - self.keep))

    def _with_dense(self, mask: Tensor, worth: Tensor) -> Tensor:
        """Fill the tiles whose left-out entries are worth most; ``mask`` is N:M, in bool or 0 and 1."""
        saved = worth.masked_fill(mask > 0, 0.0).sum(dim=1)
        return torch.where(self.choice(saved).unsqueeze(1), torch.ones_like(mask), mask)
