"""Whole masks of small groups: every mask of every group tried against the residual that the other groups leave.

An exchange moves two entries of a group; where four must move at once, no exchange helps and this does. A group of 2:4
has 6 masks, one of 4:8 has 70, a transposable 4 x 4 tile with two kept a line has 90.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relaxprune.problems import Polytope

from .exchange import Descent, Moves

_MOST = 128  # masks of a group


class GroupMasks:
    """The masks of one group, and what each costs by itself in every group of every row.

    Args:
        masks: (V, group) float64, of 0 and 1.
        coupling: (rows, groups, group, group), Q inside groups.
    """

    def __init__(self, masks: Tensor, coupling: Tensor) -> None:
        self.masks, self.coupling = masks, coupling
        # v^T Q v without the diagonal, for all masks v of a group in one product.
        outer = masks.unsqueeze(2) * masks.unsqueeze(1)
        outer.diagonal(dim1=1, dim2=2).zero_()
        self.alone = coupling.flatten(2) @ outer.flatten(1).T  # (rows, groups, V)
        self.pairs = max(1, min(int(masks.sum(dim=1).amax()), int((1 - masks).sum(dim=1).amax())))

    @classmethod
    def of(cls, polytope: Polytope, coupling: Tensor) -> GroupMasks | None:
        """Return the masks of a set's groups, or None where they are too many."""
        group = coupling.shape[3]
        if group > _MOST.bit_length() or polytope.counts_columns():
            return None
        every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=coupling.dtype)] * group).view(-1, group)
        _, keep = polytope.cells((1, group))
        counts = every.sum(dim=1)
        masks = every[(counts <= keep) if polytope.is_at_most() else (counts == keep)].to(coupling.device)
        return cls(masks, coupling) if 1 < len(masks) <= _MOST else None

    def change(self, descent: Descent, rows: Tensor) -> Tensor:
        """Return the change by every mask in every group of ``rows`` (R,): (R, groups, V), +∞ where not allowed."""
        prune, restore = descent.single_gains(rows)
        coupling = self.coupling[rows]
        form = coupling.shape[:3]
        now = descent.mask[rows].view(form).to(coupling.dtype)
        single = torch.where(now > 0, prune.view(form), restore.view(form))
        blocked = torch.isinf(single)
        single = single.masked_fill(blocked, 0.0)
        # (v − m)ᵀ off (v − m), off: Q without its diagonal, which the single gains have.
        off = (coupling @ now.unsqueeze(3)).squeeze(3) - coupling.diagonal(dim1=2, dim2=3) * now
        constant = ((single + off) * now).sum(dim=2, keepdim=True)
        change: Tensor = (single * (1 - 2 * now) - 2 * off) @ self.masks.T
        change.add_(self.alone[rows]).add_(constant)
        if descent.fixed_kept is not None or descent.fixed_pruned is not None:
            ways = blocked.to(now.dtype)
            moved = (ways * (1 - 2 * now)) @ self.masks.T + (ways * now).sum(dim=2, keepdim=True)
            change.masked_fill_(moved > 0.5, torch.inf)
        # What changes a count is no exchange.
        return change.masked_fill_(self.masks.sum(dim=1) != now.sum(dim=2, keepdim=True), torch.inf)


def mask_search(descent: Descent, rows: Tensor, groups: GroupMasks) -> Moves:
    """Return the change of one group's mask that helps most in each of ``rows``, as exchanges inside that group."""
    best, index = groups.change(descent, rows).min(dim=2)  # of each group
    gain, chosen = best.min(dim=1)
    mask = groups.masks[index.gather(1, chosen.unsqueeze(1)).squeeze(1)] > 0  # (R, group)
    size = mask.shape[1]
    now = descent.mask[rows].view(len(rows), -1, size)[torch.arange(len(rows), device=rows.device), chosen]
    first = (chosen * size).unsqueeze(1)
    prune, restore = (
        side.to(torch.uint8).topk(groups.pairs, dim=1, sorted=True).indices + first
        for side in (now & ~mask, mask & ~now)
    )
    return Moves(gain, prune, restore, (mask & ~now).sum(dim=1))
