"""Whole masks of small groups: every mask of every group is tried against the residual of the other groups.

An exchange moves two entries of a group; if four must move at once, no exchange helps but this does. A group of 2:4 has
6 masks, one of 4:8 has 70, a transposable 4 x 4 tile with two kept a line has 90.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from relaxprune.problems import Polytope

from .gains import ExchangeState, Moves

_MOST = 128  # masks of a group, or of a tile
_COMBINED = 4096  # ways to give every row of a tile a mask


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
        """Return the masks of a set's groups, or None if there are too many."""
        group = coupling.shape[3]
        _, keep = polytope.cells((1, group))
        sizes = range(keep + 1) if polytope.is_at_most() else (keep,)
        if not 1 < sum(math.comb(group, size) for size in sizes) <= _MOST:
            return None
        kept = [chosen for size in sizes for chosen in itertools.combinations(range(group), size)]
        masks = torch.zeros(len(kept), group, dtype=coupling.dtype)
        for mask, chosen in zip(masks, kept, strict=True):
            mask[list(chosen)] = 1.0
        return cls(masks.to(coupling.device), coupling)

    def change(self, state: ExchangeState, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the change by every mask in every group of ``rows`` (R,), and by every entry alone.

        Entries that stay cancel out of a change up to rounding: it finds the best mask, but does not prove a gain.

        Returns:
            (R, groups, V), +∞ where not allowed, and (R, groups, group), 0 where not allowed.
        """
        prune, restore = state.single_gains(rows)
        coupling = self.coupling[rows]
        form = coupling.shape[:3]
        now = state.mask[rows].view(form).to(coupling.dtype)
        single = torch.where(now > 0, prune.view(form), restore.view(form))
        blocked = torch.isinf(single)
        single = single.masked_fill(blocked, 0.0)
        # (v − m)ᵀ off (v − m), off: Q without its diagonal, which the single gains have.
        off = (coupling * now.unsqueeze(2)).sum(dim=3) - coupling.diagonal(dim1=2, dim2=3) * now
        constant = ((single + off) * now).sum(dim=2, keepdim=True)
        change: Tensor = (single * (1 - 2 * now) - 2 * off) @ self.masks.T
        change.add_(self.alone[rows]).add_(constant)
        if state.fixed_kept is not None or state.fixed_pruned is not None:
            ways = blocked.to(now.dtype)
            moved = (ways * (1 - 2 * now)) @ self.masks.T + (ways * now).sum(dim=2, keepdim=True)
            change.masked_fill_(moved > 0.5, torch.inf)
        # A mask with another count is not an exchange.
        change.masked_fill_(self.masks.sum(dim=1) != now.sum(dim=2, keepdim=True), torch.inf)
        return change, single


def mask_search(state: ExchangeState, rows: Tensor, groups: GroupMasks) -> Moves:
    """Return the change of one group's mask that helps most in each of ``rows``, as exchanges inside that group."""
    change, single = groups.change(state, rows)
    best, index = change.min(dim=2)  # of each group
    chosen = best.argmin(dim=1)
    masks = groups.masks[index.gather(1, chosen.unsqueeze(1)).squeeze(1)]
    return _exchanges(state, rows, groups, chosen, masks, single)


def tile_masks(groups: GroupMasks, keep: int) -> Tensor | None:
    """Return the masks of a tile that keep ``keep`` in each column, or None if there are too many.

    Returns:
        (T, group) int64, the mask of ``groups`` that each row of the tile has.
    """
    count, group = groups.masks.shape
    if count**group > _COMBINED:
        return None
    every = torch.cartesian_prod(*[torch.arange(count, device=groups.masks.device)] * group).view(-1, group)
    tiles = every[(groups.masks[every].sum(dim=1) == keep).all(dim=1)]
    return tiles if 1 < len(tiles) <= _MOST else None


def tile_mask_search(
    state: ExchangeState, blocks: Tensor, groups: GroupMasks, tiles: Tensor
) -> tuple[Tensor, Moves, Tensor]:
    """Return the change of one tile's mask that helps most in each of ``blocks`` (B,), if one does.

    Args:
        state: the masks.
        blocks: (B,) indices of coupled blocks.
        groups: the masks of a tile's row.
        tiles: (T, group) from ``tile_masks``.

    Returns:
        The rows (R,), their exchanges, and the blocks that have any.
    """
    group = tiles.shape[1]
    rows = (blocks.unsqueeze(1) * group + torch.arange(group, device=blocks.device)).flatten()
    change, single = groups.change(state, rows)
    change = change.unflatten(0, (-1, group))  # (B, group, tiles of a block, masks)
    total = sum(change[:, row][:, :, tiles[:, row]] for row in range(group))
    assert isinstance(total, Tensor)
    index = total.flatten(1).argmin(dim=1)
    chosen = (index // len(tiles)).repeat_interleave(group)  # of each row
    masks = groups.masks[tiles[index % len(tiles)].flatten()]
    moves = _exchanges(state, rows, groups, chosen, masks, single)
    tolerance = state.tolerance().view(-1, group).sum(dim=1)[blocks]
    helps = moves.gain.view(-1, group).sum(dim=1) < -tolerance
    each = helps.repeat_interleave(group)
    return rows[each], moves.take(each), blocks[helps]


def _exchanges(
    state: ExchangeState, rows: Tensor, groups: GroupMasks, chosen: Tensor, masks: Tensor, single: Tensor
) -> Moves:
    """Return the exchanges that give group ``chosen`` (R,) of ``rows`` (R,) the mask ``masks`` (R, group).

    Their gain counts only the entries that move: those that stay would add rounding errors, even to an unchanged mask.
    """
    size = masks.shape[1]
    first = (chosen * size).unsqueeze(1)
    mask, now = masks > 0, state.mask[rows].gather(1, first + torch.arange(size, device=rows.device))
    sign = mask.to(single.dtype) - now.to(single.dtype)
    off = groups.coupling[rows, chosen]
    off = off - torch.diag_embed(off.diagonal(dim1=1, dim2=2))
    alone = single[torch.arange(len(rows), device=rows.device), chosen]
    gain = (alone * sign.abs()).sum(dim=1) + ((off * sign.unsqueeze(2)).sum(dim=1) * sign).sum(dim=1)
    prune, restore = (
        side.to(torch.uint8).topk(groups.pairs, dim=1, sorted=True).indices + first
        for side in (now & ~mask, mask & ~now)
    )
    return Moves(gain, prune, restore, (mask & ~now).sum(dim=1))
