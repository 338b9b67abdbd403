"""Listing every mask of one coupled block of a tiny problem."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RelaxPruneError

VERTEX_LIMIT = 2**20


def block_vertices(
    size: int, cells: Tensor, keep: int, at_most: bool, kept: Tensor | None = None, pruned: Tensor | None = None
) -> Tensor:
    """Return every mask of a block whose cells keep ``keep`` entries each, or at most that.

    Masks grow entry by entry; those that exceed a count, or can no longer reach it, are dropped at once, so the work is
    proportional to the number of masks (overlapping cells, as in transposable patterns, add a few dead ends).

    Args:
        size: entries in the block.
        cells: (cells, n) int64, the entries that share a count, as flat indices into the block.
        keep: kept entries of a cell.
        at_most: whether fewer may be kept.
        kept: (size,) bool, entries that every mask keeps, or None.
        pruned: (size,) bool, entries that every mask prunes, or None.

    Returns:
        (masks, size) bool, on the CPU, in lexicographic order (False first).

    Raises:
        RelaxPruneError: more than 2^20 masks.
    """
    cells = cells.cpu()
    member = torch.zeros(size, cells.shape[0], dtype=torch.int32)
    member.scatter_add_(0, cells.T, torch.ones_like(cells.T, dtype=torch.int32))
    must = torch.zeros(size, dtype=torch.bool) if kept is None else kept.reshape(-1).cpu()
    never = torch.zeros(size, dtype=torch.bool) if pruned is None else pruned.reshape(-1).cpu()
    left = (member * ~never.unsqueeze(1)).sum(dim=0, dtype=torch.int32)  # (cells,) entries that may still be kept
    masks, counts = torch.zeros(1, size, dtype=torch.bool), torch.zeros(1, cells.shape[0], dtype=torch.int32)
    for entry in range(size):
        choices = [True] if must[entry] else [False] if never[entry] else [False, True]
        grown = masks.repeat(len(choices), 1)
        value = torch.tensor(choices).repeat_interleave(len(masks))
        grown[:, entry] = value
        counts = counts.repeat(len(choices), 1) + value.unsqueeze(1) * member[entry]
        left = left if never[entry] else left - member[entry]
        alive = (counts <= keep).all(dim=1)
        if not at_most:
            alive &= (counts + left >= keep).all(dim=1)
        masks, counts = grown[alive], counts[alive]
        if len(masks) > VERTEX_LIMIT:
            raise RelaxPruneError(
                f"a coupled block may have at most {VERTEX_LIMIT} masks to be listed, but this set has more: "
                f"{keep} kept in each of {cells.shape[0]} cells of {cells.shape[1]} entries"
            )
    return masks[_lexicographic(masks)]


def _lexicographic(masks: Tensor) -> Tensor:
    """Return the order that sorts ``masks`` (masks, size): stable sorts from the last entry to the first."""
    order = torch.arange(len(masks))
    for entry in reversed(range(masks.shape[1])):
        order = order[masks[order, entry].to(torch.uint8).argsort(stable=True)]
    return order
