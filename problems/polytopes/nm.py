"""N:M masks: n kept in every group of m consecutive columns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import whole_number
from ..errors import RelaxPruneError
from .base import Polytope, Shape
from .projection import project_capped
from .selection import counts_within, in_box, largest_stable, smallest, thresholds

_PAIRWISE_LIMIT = 8  # comparing all pairs of a group beats a selection up to about this group size


@dataclass(frozen=True)
class NM(Polytope):
    """Masks that keep exactly ``keep`` of every ``group`` consecutive columns.

    {m ∈ [0, 1]^(rows × cols) : Σ_{j in group g} m_ij = keep for every row i and group g}, a product of small
    hypersimplices, so integral. ``at_most=True`` makes the sums ≤ keep (SparseFW, arXiv 2510.13713, section 2).

    Args:
        keep: entries KEPT in a group (some tools count the pruned ones).
        group: consecutive columns in a group; must divide the columns of the weight.
        at_most: allow fewer than ``keep``.
    """

    keep: int
    group: int
    at_most: bool = False
    kind: ClassVar[str] = "nm"

    def __post_init__(self) -> None:
        """Check the options that need no shape."""
        whole_number("group", self.group, 1)
        whole_number("keep", self.keep, 0)
        if self.keep > self.group:
            raise RelaxPruneError(f"keep is {self.keep}, but a group has only {self.group} columns")

    @classmethod
    def from_pattern(cls, pattern: str) -> NM:
        """Read ``"2:4"`` as "keep 2 of every 4 consecutive columns"."""
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", pattern) if isinstance(pattern, str) else None
        if match is None:
            raise RelaxPruneError(f'pattern must look like "2:4" (keep 2 of every 4 columns), got {pattern!r}')
        return cls(int(match[1]), int(match[2]))

    def validate(self, shape: Shape) -> None:
        """Raise RelaxPruneError if ``group`` does not divide the columns."""
        if shape[1] % self.group:
            raise RelaxPruneError(f"group is {self.group}, which does not divide the {shape[1]} columns of the weight")

    def kept(self, shape: Shape) -> int:
        """Return the number of kept entries of a (rows, cols) mask."""
        return shape[0] * (shape[1] // self.group) * self.keep

    def group_size(self, shape: Shape) -> int:
        """Return ``group``."""
        return self.group

    def room(self, mask: Tensor) -> Tensor:
        """Return the pruned entries of groups that keep fewer than they may."""
        if not self.at_most:
            return torch.zeros_like(mask)
        groups = mask.view(mask.shape[0], -1, self.group)
        return ((groups.sum(dim=2, keepdim=True) < self.keep) & ~groups).view(mask.shape)

    def with_share(self, share: float) -> NM:
        """Return the exact set with floor(share · keep) in each group."""
        return NM(int(share * self.keep + 1e-9), self.group)

    def at_most_set(self) -> NM:
        """Return the set with "at most" ``keep`` in each group."""
        return NM(self.keep, self.group, at_most=True)

    def is_at_most(self) -> bool:
        """Return whether fewer entries may be kept."""
        return self.at_most

    def on_columns(self, start: int, stop: int, shape: Shape) -> NM | None:
        """Return the set itself, between groups."""
        return None if start % self.group or stop % self.group else self

    def lmo(self, gradient: Tensor) -> Tensor:
        """Take the ``keep`` smallest entries of each group; with ``at_most`` only those below 0."""
        if self.group <= _PAIRWISE_LIMIT:
            vertex = self._first(gradient).to(gradient.dtype)
        else:
            vertex = smallest(gradient.reshape(-1, self.group), self.keep).view_as(gradient)
        return vertex.mul_(gradient < 0) if self.at_most else vertex

    def round(self, point: Tensor) -> Tensor:
        """Keep the ``keep`` largest entries of each group, ties by the lowest column; ``at_most``: only above 0."""
        if self.group <= _PAIRWISE_LIMIT:
            mask = self._first(-point)
        else:
            mask = largest_stable(point.reshape(-1, self.group), self.keep).view(point.shape)
        return mask & (point > 0) if self.at_most else mask

    def prices(self, gradient: Tensor) -> Tensor:
        """Return the gradient's threshold in every group if the counts are "at most"."""
        if not self.at_most:
            return torch.zeros_like(gradient)
        return thresholds(gradient.reshape(-1, self.group), self.keep, True).view_as(gradient)

    def projects(self) -> bool:
        """Return True."""
        return True

    def project(self, point: Tensor, weights: Tensor | None = None) -> Tensor:
        """Project each group onto a capped simplex."""
        # Groups lie along columns of a transposed copy: sums over long dimensions of many lanes are the quick ones.
        lanes = None if weights is None else weights.reshape(-1, self.group).T.contiguous()
        groups = point.reshape(-1, self.group).T.contiguous()
        return project_capped(groups, self.keep, lanes, at_most=self.at_most, dim=0).T.reshape(point.shape)

    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        """Return whether the counts and the box hold up to ``tolerance``."""
        values = point.to(torch.float64)
        counts = values.reshape(-1, self.group).sum(dim=1)
        return in_box(values, tolerance) and counts_within(counts, self.keep, self.at_most, tolerance)

    def _first(self, scores: Tensor) -> Tensor:
        """Mark the ``keep`` smallest of each group, ties by the lowest column: (rows, cols) bool.

        An entry is marked when fewer than ``keep`` of its group come before it; ``before`` counts them by comparing all
        entries that lie the same number of columns apart at once, in all groups: few, large operations.
        """
        groups = scores.reshape(scores.shape[0], -1, self.group)
        lanes = groups.permute(2, 0, 1).contiguous()  # (group, rows, groups)
        before = torch.zeros(lanes.shape, dtype=torch.int8, device=lanes.device)
        for apart in range(1, self.group):
            first = lanes[:-apart] <= lanes[apart:]
            before[apart:].add_(first)
            before[:-apart].add_(first.logical_not_())
        return (before < self.keep).permute(1, 2, 0).reshape(scores.shape)
