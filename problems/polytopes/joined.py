"""The same masks, as one coupled block: for objectives that couple rows whose counts do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RelaxPruneError
from .base import Polytope, Shape
from .face import Face


@dataclass(frozen=True, eq=False)
class Joined(Polytope):
    """{m ∈ base}, all rows of which make up one coupled block, so that steps, gaps and bounds are of the whole matrix.

    Args:
        base: a set whose counts lie inside rows.
    """

    base: Polytope
    kind: ClassVar[str] = "joined"

    def validate(self, shape: Shape) -> None:
        """Raise RelaxPruneError if the base is not for this ``shape``, or has counts over several rows."""
        self.base.validate(shape)
        if self.base.rows_per_block(shape) > 1 and shape[0] > 1:
            raise RelaxPruneError(
                f"an objective that couples rows takes sets whose counts lie inside rows, got {self.base!r}; give "
                "every row a count of its own"
            )

    @property
    def label(self) -> str:
        """The name of the base set in error messages."""
        return self.base.label

    def __repr__(self) -> str:
        """Show the base set."""
        return repr(self.base)

    def kept(self, shape: Shape) -> int:
        """Return the number of kept entries of the base set."""
        return self.base.kept(shape)

    def rows_per_block(self, shape: Shape) -> int:
        """Return all rows."""
        return shape[0]

    def group_size(self, shape: Shape) -> int:
        """Return how many consecutive columns share a count in the base set."""
        return self.base.group_size(shape)

    def cells(self, shape: Shape) -> tuple[Tensor, int]:
        """Return the cells of the base set in all rows."""
        index, keep = self.base.cells(shape)
        starts = torch.arange(shape[0]).view(-1, 1, 1) * shape[1]
        return (index.unsqueeze(0) + starts).flatten(0, 1), keep

    def fixed(self) -> tuple[Tensor | None, Tensor | None]:
        """Return what the base fixes."""
        return self.base.fixed()

    def rows(self, index: Tensor | slice) -> Joined:
        """Return the base of the selected rows, joined."""
        return Joined(self.base.rows(index))

    def room(self, mask: Tensor) -> Tensor:
        """Return where the base has room."""
        return self.base.room(mask)

    def with_share(self, share: float) -> Polytope:
        """Return the base's set of that share, joined."""
        return Joined(self.base.with_share(share))

    def at_most_set(self) -> Joined:
        """Return the base's "at most" set, joined."""
        return Joined(self.base.at_most_set())

    def is_at_most(self) -> bool:
        """Return whether fewer entries may be kept."""
        return self.base.is_at_most()

    def to_dict(self) -> dict[str, Any]:
        """Return the base set: the masks are the same."""
        return self.base.to_dict()

    def lmo(self, gradient: Tensor) -> Tensor:
        """Minimise over the base."""
        return self.base.lmo(gradient)

    def near_lmo(self, gradient: Tensor, hint: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Minimise over the base, nearly."""
        return self.base.near_lmo(gradient, hint)

    def lmo_bound(self, gradient: Tensor, kept: Tensor | None = None, pruned: Tensor | None = None) -> Tensor:
        """Return the sum of the base's bounds."""
        return self.base.lmo_bound(gradient, kept, pruned).sum().unsqueeze(0)

    def round(self, point: Tensor) -> Tensor:
        """Round in the base."""
        return self.base.round(point)

    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        """Return whether the base contains ``point``."""
        return self.base.contains(point, tolerance)

    def projects(self) -> bool:
        """Return whether the base has a projection."""
        return self.base.projects()

    def project(self, point: Tensor, weights: Tensor | None = None) -> Tensor:
        """Project in the base."""
        return self.base.project(point, weights)


def joined(polytope: Polytope) -> Polytope:
    """Return the set as one coupled block; fixed entries stay outermost."""
    if isinstance(polytope, Face):
        return Face(joined(polytope.base), polytope.kept_entries, polytope.pruned_entries)
    return polytope if isinstance(polytope, Joined) else Joined(polytope)
