"""An order of a layer's columns in which an N:M mask keeps more: scipy's assignment, slot after slot.

After the channel permutation of RIA (Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large
Language Models", ICLR 2024): columns are dealt to groups by their sums, then one column of every group is taken out and
all of them are given back by a linear sum assignment. RIA takes its own score; here any score may be given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MOST_STEPS = 60
_LEAST_GAIN = 1e-3  # of what is pruned, over as many steps as a group has columns: below it the search ends
_CHUNK_ENTRIES = 1 << 23  # entries of the temporary that compares columns with thresholds
_NEAR_ENTRIES = 1 << 20  # of one that stays in a cache

# From scores (rows, cols), the entries kept in a group, the taken columns (groups,) and the other columns of each group
# (groups, group - 1) to what each taken column would add to what each group keeps: (taken, groups) float64 on the CPU.
Gains = Callable[[Tensor, int, Tensor, Tensor], Tensor]


def kept_saliency(scores: Tensor, keep: int, group: int) -> float:
    """Return the largest sum of scores that a mask can keep.

    Args:
        scores: (rows, cols), at least 0; cols a multiple of ``group``.
        keep: entries kept in a group.
        group: consecutive columns in a group.
    """
    groups = scores.reshape(scores.shape[0], -1, group)
    return float(groups.topk(keep, dim=2, sorted=False).values.sum(dtype=torch.float64))


def gains_by_rows(scores: Tensor, keep: int, taken: Tensor, others: Tensor) -> Tensor:
    """Return what each taken column would add to each group, summed over chunks of rows.

    A column adds what it exceeds the group's ``keep``-th largest score by, row by row.
    """
    rows, count = scores.shape[0], taken.numel()
    device = scores.device
    gains = torch.zeros(count, count, dtype=torch.float64, device=device)
    columns = scores[:, taken.to(device)]  # (rows, taken)
    rest = scores[:, others.view(-1).to(device)].view(rows, count, -1)
    thresholds = rest.topk(keep, dim=2).values[..., -1]  # (rows, groups)
    size = max(1, _CHUNK_ENTRIES // count**2)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        gains += (columns[part, :, None] - thresholds[part, None, :]).clamp_min_(0).sum(dim=0)
    return gains.cpu()


def gains_by_groups(scores: Tensor, keep: int, taken: Tensor, others: Tensor) -> Tensor:
    """Return the same, some groups at a time and all rows at once: equal up to rounding, in a quarter of the time."""
    rows, count = scores.shape[0], taken.numel()
    lanes = scores.T.contiguous()
    columns = lanes[taken.to(lanes.device)]  # (taken, rows)
    rest = lanes[others.view(-1).to(lanes.device)].view(count, -1, rows)
    thresholds = rest.topk(keep, dim=1).values[:, -1:]  # (groups, 1, rows)
    size = max(1, _NEAR_ENTRIES // (rows * count))
    parts = [(columns - some).clamp_min_(0).sum(dim=2) for some in thresholds.split(size)]
    return torch.cat(parts).T.to(torch.float64).cpu()


def channel_order(scores: Tensor, keep: int, group: int, seed: int = 0, gains: Gains = gains_by_rows) -> Tensor:
    """Search an order of the columns with a large kept saliency.

    Args:
        scores: (rows, cols), at least 0, in the order at hand; cols a multiple of ``group``.
        keep: entries kept in a group.
        group: consecutive columns in a group.
        seed: of the choice of the columns that are taken out.
        gains: computes what columns add to groups; sums in another order may lead to another order of columns.

    Returns:
        (cols,) int64 on the CPU: place p takes column order[p]. It keeps more than the order at hand, or is that order.
    """
    cols = scores.shape[1]
    identity = torch.arange(cols)
    if not 0 < keep < group or cols == group:
        return identity
    dealt = _dealt(scores, group)
    kept = {order: kept_saliency(scores[:, order.to(scores.device)], keep, group) for order in (identity, dealt)}
    found = _refined(scores, keep, max(kept, key=lambda order: kept[order]).view(-1, group), seed, gains)
    # Judged in float64: the steps compare in the dtype of the scores.
    better = kept_saliency(scores[:, found.to(scores.device)], keep, group) > kept[identity]
    return found if better else identity


def _dealt(scores: Tensor, group: int) -> Tensor:
    """Deal the columns to the groups, the heaviest first, there and back again, so that their sums come out even."""
    ranks = scores.sum(dim=0).argsort(descending=True, stable=True).cpu().view(group, -1)
    ranks[1::2] = ranks[1::2].flip(1)
    return ranks.T.reshape(-1)


def _refined(scores: Tensor, keep: int, order: Tensor, seed: int, gains: Gains) -> Tensor:
    """Take one column out of every group, assign all of them anew, and so on while that pays.

    Args:
        scores: (rows, cols).
        keep: entries kept in a group.
        order: (groups, group) int64, the columns of each group.
        seed: of the choice of the columns.
        gains: of columns in groups.
    """
    from scipy.optimize import linear_sum_assignment

    generator = torch.Generator().manual_seed(seed)
    order = order.clone()
    count, group = order.shape
    total = float(scores.sum(dtype=torch.float64))
    kept = [kept_saliency(scores[:, order.view(-1).to(scores.device)], keep, group)]
    for step in range(1, _MOST_STEPS + 1):
        slots = torch.randint(group, (count, 1), generator=generator)
        taken = order.gather(1, slots).view(-1)  # (groups,)
        others = order[torch.ones_like(order, dtype=torch.bool).scatter_(1, slots, False)].view(count, group - 1)
        columns, groups = linear_sum_assignment(gains(scores, keep, taken, others).numpy(), maximize=True)
        given = torch.empty_like(taken)
        given[torch.from_numpy(groups)] = taken[torch.from_numpy(columns)]
        order.scatter_(1, slots, given.view(-1, 1))
        kept.append(kept_saliency(scores[:, order.view(-1).to(scores.device)], keep, group))
        if step >= group and kept[-1] - kept[-1 - group] <= _LEAST_GAIN * (total - kept[-1]):
            break
    return order.view(-1)
