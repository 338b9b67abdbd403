"""Interchanges inside tiles whose rows and columns both keep their counts: two rows swap a kept and a pruned column.

Row i keeps column j and prunes l, row k keeps l and prunes j; afterwards it is the other way round, and every count of
the tile is as before. The rows of the objective are independent, so the change is that of two exchanges, one in each
row (see ``gains``), and the best interchange of two columns is the best exchange j → l plus the best one l → j:
looking at all interchanges costs no more than looking at all exchanges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gains import ExchangeState, Moves

_ENTRIES = 2**22  # exchanges evaluated at once


@dataclass
class Interchanges:
    """The best interchange of each tile of some coupled blocks.

    Attributes:
        gain: (blocks, tiles, 2) change of the objective, of the upper and of the lower row.
        row: (blocks, tiles, 2) the two rows.
        prune, restore: (blocks, tiles) the upper row's columns; the lower row's are the other way round.
    """

    gain: Tensor
    row: Tensor
    prune: Tensor
    restore: Tensor


def tile_search(state: ExchangeState, blocks: Tensor, coupling: Tensor) -> tuple[Tensor, Moves, Tensor]:
    """Return helpful interchanges inside tiles, none of which share a row, over all pairs of rows and columns.

    Args:
        state: the masks.
        blocks: (B,) indices of coupled blocks.
        coupling: (rows, tiles, group, group), Q inside tiles.

    Returns:
        The rows (R,), their exchanges, and the blocks that have any; a block without one is at an optimum.
    """
    _, tiles, group, _ = coupling.shape
    tolerance = state.tolerance().view(-1, group).sum(dim=1)
    size = max(1, _ENTRIES // (group * group * group * tiles))
    found = [_choose(_best_of_tiles(state, part, coupling), tolerance[part]) for part in blocks.split(size)]
    rows, gain, prune, restore = (torch.cat(parts) for parts in zip(*found, strict=True))
    return rows, Moves(gain, prune, restore), (rows // group).unique()


def _best_of_tiles(state: ExchangeState, blocks: Tensor, coupling: Tensor) -> Interchanges:
    """Evaluate all interchanges of ``blocks`` (B,) and return the best of each tile."""
    _, tiles, group, _ = coupling.shape
    rows = (blocks.unsqueeze(1) * group + torch.arange(group, device=blocks.device)).flatten()
    prune, restore = state.single_gains(rows)
    change = prune.view(-1, tiles, group, 1) + restore.view(-1, tiles, 1, group)
    change.sub_(coupling[rows], alpha=2)
    exchange, row = change.view(-1, group, tiles, group, group).min(dim=1)  # (B, tiles, group, group): j → l
    both = (exchange + exchange.transpose(2, 3)).flatten(2)
    index = both.argmin(dim=2)  # (B, tiles)
    left, right = index // group, index % group
    way = torch.stack([index, right * group + left], dim=2)  # (B, tiles, 2): j → l and l → j
    first = torch.arange(tiles, device=blocks.device) * group
    return Interchanges(
        exchange.flatten(2).gather(2, way),
        row.flatten(2).gather(2, way) + (blocks * group).view(-1, 1, 1),
        first + left,
        first + right,
    )


def _choose(best: Interchanges, tolerance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the best interchange of each block, then the best whose rows are still free, until none helps.

    Args:
        best: of B blocks.
        tolerance: (B,), the gain that counts as none.

    Returns:
        Rows, gains, pruned and restored columns of the exchanges, (R,) each.
    """
    gain = best.gain.sum(dim=2)  # (B, tiles)
    taken: list[tuple[Tensor, Tensor]] = []
    while True:
        least, tile = gain.min(dim=1)
        block = (least < -tolerance).nonzero().squeeze(1)
        tile = tile[block]
        taken.append((block, tile))
        if not len(block):
            break
        pair = best.row[block, tile]  # (P, 2)
        touches = (best.row[block].unsqueeze(3) == pair[:, None, None, :]).flatten(2).any(dim=2)  # (P, tiles)
        gain[block] = gain[block].masked_fill(touches, torch.inf)
    block, tile = (torch.cat(parts) for parts in zip(*taken, strict=True))
    prune, restore = best.prune[block, tile], best.restore[block, tile]
    return (
        best.row[block, tile].T.flatten(),
        best.gain[block, tile].T.flatten(),
        torch.cat([prune, restore]),
        torch.cat([restore, prune]),
    )
