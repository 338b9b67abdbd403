"""k-sparse masks: a fixed number of kept entries in each row, or in the whole matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..checks import fraction, one_of, whole_number
from ..errors import RelaxPruneError
from .base import Polytope, Shape
from .projection import project_capped
from .selection import counts_within, in_box, largest_stable, smallest, thresholds
from .threshold import nearly_smallest


def pruned_count(size: int, sparsity: float) -> int:
    """Return floor(size · sparsity), as Wanda counts, safe against 0.29 · 100 = 28.999….

    Raises:
        RelaxPruneError: ``sparsity`` is not in [0, 1].
    """
    fraction("sparsity", sparsity)
    return int(size * sparsity + 1e-9)


@dataclass(frozen=True)
class KSparse(Polytope):
    """Masks that keep exactly ``keep`` entries of each row: {m ∈ [0, 1]^(rows × cols) : Σ_j m_ij = keep for all i}.

    With ``per="layer"`` the sum runs over the whole matrix, which couples all rows; with ``at_most=True`` the sum is
    ≤ keep, the set of the SparseFW paper (arXiv 2510.13713, section 2). Vertices are the masks: the hypersimplex is
    integral.

    Args:
        keep: number of kept entries per row, or in the whole matrix for ``per="layer"``.
        per: ``"row"`` or ``"layer"``.
        at_most: allow fewer than ``keep``.
    """

    keep: int
    per: Literal["row", "layer"] = "row"
    at_most: bool = False
    kind: ClassVar[str] = "ksparse"

    def __post_init__(self) -> None:
        """Check the options that need no shape."""
        whole_number("keep", self.keep, 0)
        one_of("per", self.per, ("row", "layer"))

    @classmethod
    def from_sparsity(
        cls, sparsity: float, shape: Shape, per: Literal["row", "layer"] = "row", at_most: bool = False
    ) -> KSparse:
        """Return the set that prunes floor(size · sparsity) entries of each row (of the matrix, per layer).

        Args:
            sparsity: pruned fraction in [0, 1].
            shape: (rows, cols) of the weight.
            per: ``"row"`` or ``"layer"``.
            at_most: allow fewer kept entries.
        """
        if not isinstance(shape, tuple) or len(shape) != 2:
            raise RelaxPruneError(f"shape must be (rows, cols) of the weight, got {shape!r}")
        rows, cols = shape
        size = rows * cols if per == "layer" else cols
        return cls(size - pruned_count(size, sparsity), per, at_most)

    def validate(self, shape: Shape) -> None:
        """Raise RelaxPruneError if ``keep`` exceeds a row (the matrix) of this (rows, cols) ``shape``."""
        size = shape[1] if self.per == "row" else shape[0] * shape[1]
        if self.keep > size:
            where = "each row" if self.per == "row" else "the matrix"
            raise RelaxPruneError(f"keep is {self.keep}, but {where} of a {shape[0]} x {shape[1]} weight has {size}")

    def kept(self, shape: Shape) -> int:
        """Return the number of kept entries of a (rows, cols) mask."""
        return self.keep * shape[0] if self.per == "row" else self.keep

    def rows_per_block(self, shape: Shape) -> int:
        """Return 1, or all rows if the count is over the layer."""
        return 1 if self.per == "row" else shape[0]

    def rows(self, index: Tensor | slice) -> KSparse:
        """Return the set itself: every row has the same count."""
        if self.per == "layer":
            raise RelaxPruneError('a KSparse(per="layer") set couples all rows and cannot be split into rows')
        return self

    def room(self, mask: Tensor) -> Tensor:
        """Return the pruned entries of rows (of the matrix) that keep fewer than they may."""
        counts = self._flat(mask).sum(dim=1, keepdim=True)
        return ~mask & (counts < self.keep) if self.at_most else torch.zeros_like(mask)

    def with_share(self, share: float) -> KSparse:
        """Return the exact set with floor(share · keep)."""
        return KSparse(int(share * self.keep + 1e-9), self.per)

    def at_most_set(self) -> KSparse:
        """Return the set with "at most" ``keep``."""
        return KSparse(self.keep, self.per, at_most=True)

    def is_at_most(self) -> bool:
        """Return whether fewer entries may be kept."""
        return self.at_most

    def on_columns(self, start: int, stop: int, shape: Shape) -> KSparse:
        """Return the set that keeps as many as fall between ``start`` and ``stop`` if columns are filled evenly."""
        rows, cols = shape
        done, now = (self.keep * end // cols for end in (start, stop))
        width = (1 if self.per == "row" else rows) * (stop - start)
        return KSparse(min(now - done, width), self.per, self.at_most)

    def lmo(self, gradient: Tensor) -> Tensor:
        """Take the ``keep`` smallest entries; with ``at_most`` only those below 0."""
        vertex = smallest(self._flat(gradient), self.keep).view_as(gradient)
        return vertex.mul_(gradient < 0) if self.at_most else vertex

    def near_lmo(self, gradient: Tensor, hint: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Search for the threshold from that of the last call."""
        point, hint = nearly_smallest(self._flat(gradient), self.keep, hint)
        point = point.view_as(gradient)
        return point.mul_(gradient < 0) if self.at_most else point, hint

    def round(self, point: Tensor) -> Tensor:
        """Keep the ``keep`` largest entries; with ``at_most`` only those above 0."""
        mask = largest_stable(self._flat(point), self.keep).view(point.shape)
        return mask & (point > 0) if self.at_most else mask

    def prices(self, gradient: Tensor) -> Tensor:
        """Return the gradient's threshold if the count is over the matrix or "at most"."""
        if self.per == "row" and not self.at_most:
            return torch.zeros_like(gradient)
        return thresholds(self._flat(gradient), self.keep, self.at_most).view_as(gradient)

    def projects(self) -> bool:
        """Return True."""
        return True

    def project(self, point: Tensor, weights: Tensor | None = None) -> Tensor:
        """Project each row (the matrix) onto a capped simplex."""
        lines = None if weights is None else self._flat(weights)
        return project_capped(self._flat(point), self.keep, lines, at_most=self.at_most).view(point.shape)

    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        """Return whether the counts and the box hold up to ``tolerance``."""
        values = point.to(torch.float64)
        return in_box(values, tolerance) and counts_within(
            self._flat(values).sum(dim=1), self.keep, self.at_most, tolerance
        )

    def _flat(self, values: Tensor) -> Tensor:
        """View (rows, cols) as one line per coupled block."""
        return values if self.per == "row" else values.reshape(1, -1)
