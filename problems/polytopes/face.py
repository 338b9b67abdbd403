"""A face of a polytope: some entries are fixed to kept or pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import check_mask
from ..errors import RelaxPruneError
from .base import FIXED_COUNTS, Polytope, Shape
from .selection import with_fixed


@dataclass(frozen=True, eq=False)
class Face(Polytope):
    """{m ∈ base : m_ij = 1 where ``kept_entries``, m_ij = 0 where ``pruned_entries``}.

    The oracle of the base serves: an entry fixed to kept costs −∞, one fixed to pruned +∞.

    Args:
        base: the polytope.
        kept_entries: (rows, cols) bool, or None.
        pruned_entries: (rows, cols) bool, or None.
    """

    base: Polytope
    kept_entries: Tensor | None = None
    pruned_entries: Tensor | None = None
    kind: ClassVar[str] = "face"

    def __post_init__(self) -> None:
        """Turn a face of a face into one face of the base set."""
        if isinstance(self.base, Face):
            object.__setattr__(self, "kept_entries", _either(self.base.kept_entries, self.kept_entries))
            object.__setattr__(self, "pruned_entries", _either(self.base.pruned_entries, self.pruned_entries))
            object.__setattr__(self, "base", self.base.base)

    def validate(self, shape: Shape) -> None:
        """Raise RelaxPruneError if the fixed entries leave no feasible mask."""
        self.base.validate(shape)
        for name, entries in zip(FIXED_COUNTS, self.fixed(), strict=True):
            if entries is not None:
                check_mask(name, entries, shape)
        kept, pruned = self.kept_entries, self.pruned_entries
        if kept is not None and pruned is not None and bool((kept & pruned).any()):
            raise RelaxPruneError("fixed_kept and fixed_pruned share entries, but an entry cannot be both")
        device = next((entries.device for entries in (kept, pruned) if entries is not None), None)
        mask = self.round(torch.ones(shape, device=device))
        if not self.contains(mask):
            raise RelaxPruneError(
                "fixed_kept and fixed_pruned leave no feasible mask: some count is exceeded or cannot be reached"
            )

    @property
    def label(self) -> str:
        """The name of the base set in error messages."""
        return self.base.label

    def kept(self, shape: Shape) -> int:
        """Return the number of kept entries of the base set."""
        return self.base.kept(shape)

    def rows_per_block(self, shape: Shape) -> int:
        """Return the height of a coupled block of the base set."""
        return self.base.rows_per_block(shape)

    def group_size(self, shape: Shape) -> int:
        """Return how many consecutive columns share a count in the base set."""
        return self.base.group_size(shape)

    def cells(self, shape: Shape) -> tuple[Tensor, int]:
        """Return the cells of the base set."""
        return self.base.cells(shape)

    def counts_columns(self) -> bool:
        """Return whether columns of the base set have counts."""
        return self.base.counts_columns()

    def fixed(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the entries fixed to kept and to pruned."""
        return self.kept_entries, self.pruned_entries

    def rows(self, index: Tensor | slice) -> Face:
        """Return the face of the selected rows."""
        kept, pruned = self.kept_entries, self.pruned_entries
        return Face(
            self.base.rows(index),
            None if kept is None else kept[index],
            None if pruned is None else pruned[index],
        )

    def room(self, mask: Tensor) -> Tensor:
        """Return where the base has room and the entry is not fixed."""
        room = self.base.room(mask)
        return room if self.pruned_entries is None else room & ~self.pruned_entries

    def with_share(self, share: float) -> Polytope:
        """Return the base's set of that share with the same fixed entries, which are among the first chosen."""
        return Face(self.base.with_share(share), self.kept_entries, self.pruned_entries)

    def loosened(self) -> Face:
        """Return the same fixed entries in the set of all masks."""
        return Face(self.base.loosened(), self.kept_entries, self.pruned_entries)

    def chosen_from(self) -> Face | None:
        """Return the same fixed entries in the set of which the base leaves rows dense."""
        rows, kept = self.base.chosen_from(), self.kept_entries
        if rows is not None and kept is not None:
            kept = kept & ~self.base.only_dense(kept).unsqueeze(1)  # these rows are dense whatever is found for them
        return None if rows is None else Face(rows, kept, self.pruned_entries)

    def only_dense(self, kept: Tensor) -> Tensor:
        """Return the rows that must be dense in the base, given the fixed entries, too."""
        return self.base.only_dense(kept if self.kept_entries is None else kept | self.kept_entries)

    def choice(self, saved: Tensor) -> Tensor:
        """Return the base's choice, with the rows that must be dense and without those of an entry fixed to pruned."""
        if self.kept_entries is not None:
            saved = saved.masked_fill(self.base.only_dense(self.kept_entries), torch.inf)
        if self.pruned_entries is not None:
            saved = saved.masked_fill(self.pruned_entries.any(dim=1), -torch.inf)
        return self.base.choice(saved)

    def face_lmo(self, gradient: Tensor, point: Tensor, tolerance: float = 0.0) -> Tensor:
        """Minimise over the base's face: fixed entries are at a bound in ``point`` already."""
        return self.base.face_lmo(gradient, point, tolerance)

    def on_columns(self, start: int, stop: int, shape: Shape) -> Polytope | None:
        """Return None: with columns filled evenly, one part may have more fixed entries than its count."""
        return self if (start, stop) == (0, shape[1]) else None

    def at_most_set(self) -> Face:
        """Return the same face of the base's "at most" set."""
        return Face(self.base.at_most_set(), self.kept_entries, self.pruned_entries)

    def is_at_most(self) -> bool:
        """Return whether fewer entries may be kept."""
        return self.base.is_at_most()

    def to_dict(self) -> dict[str, Any]:
        """Return the base set and how many entries are fixed.

        For people who read a report. The fixed entries, as large as a mask, are left out, so ``polytope_from_dict``
        refuses it.
        """
        masks = zip(FIXED_COUNTS, self.fixed(), strict=True)
        fixed = {name: int(entries.sum()) for name, entries in masks if entries is not None}
        return {**self.base.to_dict(), **fixed}

    def lmo(self, gradient: Tensor) -> Tensor:
        """Minimise over the face by the base's oracle with infinite costs on the fixed entries."""
        return self.base.lmo(self._forced(gradient, -torch.inf))

    def lmo_bound(self, gradient: Tensor, kept: Tensor | None = None, pruned: Tensor | None = None) -> Tensor:
        """Return the base's bound, given what is fixed."""
        return self.base.lmo_bound(gradient, _either(self.kept_entries, kept), _either(self.pruned_entries, pruned))

    def round(self, point: Tensor) -> Tensor:
        """Round in the base with the fixed entries in place."""
        return self.base.round(self._forced(point, torch.inf))

    def prices(self, gradient: Tensor) -> Tensor:
        """Return the base's prices, among the free entries."""
        limit = gradient.abs().amax() + 1
        forced = with_fixed(gradient, self.kept_entries, self.pruned_entries, float(-limit))
        return self.base.prices(forced)

    def projects(self) -> bool:
        """Return whether the base has a projection."""
        return self.base.projects()

    def project(self, point: Tensor, weights: Tensor | None = None) -> Tensor:
        """Project in the base with the fixed entries at infinity, where they stay."""
        return self.base.project(self._forced(point, torch.inf), weights)

    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        """Return whether the base contains ``point`` and every fixed entry has its value."""
        kept, pruned = self.kept_entries, self.pruned_entries
        values = point.to(torch.float64)
        good = self.base.contains(point, tolerance)
        if kept is not None:
            good = good and bool((values[kept] >= 1 - tolerance).all())
        if pruned is not None:
            good = good and bool((values[pruned] <= tolerance).all())
        return good

    def _forced(self, values: Tensor, kept_value: float) -> Tensor:
        """Put ``kept_value`` on kept entries and its opposite on pruned ones."""
        return with_fixed(values, self.kept_entries, self.pruned_entries, kept_value)


def _either(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the union of two masks, each of which may be None."""
    if one is None or other is None:
        return other if one is None else one
    return one | other
