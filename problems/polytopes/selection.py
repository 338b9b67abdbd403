"""Selecting and counting entries of masks, for all sets of masks."""

from __future__ import annotations

import torch
from torch import Tensor


def with_fixed(values: Tensor, kept: Tensor | None, pruned: Tensor | None, kept_value: float) -> Tensor:
    """Return ``values`` (rows, cols) with ``kept_value`` where ``kept`` is set and its opposite where ``pruned`` is."""
    if kept is not None:
        values = values.masked_fill(kept, kept_value)
    return values if pruned is None else values.masked_fill(pruned, -kept_value)


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` smallest entries of each row of ``scores`` (rows, n) with 1, in the dtype of ``scores``.

    Exact in count; ties are broken as ``torch.topk`` does, see ``Polytope.lmo``.
    """
    cols = scores.shape[1]
    if count >= cols:
        return torch.ones_like(scores)
    vertex = torch.zeros_like(scores)
    if count == 0:
        return vertex
    # The smaller side is selected: topk's cost grows with the number selected.
    pick = min(count, cols - count)
    index = scores.topk(pick, dim=1, largest=pick != count, sorted=False).indices
    vertex.scatter_(1, index, 1.0)
    return vertex if pick == count else vertex.neg_().add_(1.0)


def largest_stable(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` largest entries of each row of ``scores`` (rows, n) as bool; ties go to the lowest index."""
    if count == 0 or count >= scores.shape[1]:
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    threshold = scores.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above = scores > threshold
    tied = scores == threshold
    room = count - above.sum(dim=1, keepdim=True)
    return above | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room))


def thresholds(lines: Tensor, keep: int, at_most: bool) -> Tensor:
    """Return the ``keep``-th smallest value of each line, at most 0 if fewer may be kept: (lines, n), expanded."""
    if not 0 < keep < lines.shape[1]:
        return torch.zeros_like(lines)
    values = lines.kthvalue(keep, dim=1, keepdim=True).values
    return (values.clamp(max=0) if at_most else values).expand_as(lines).contiguous()


def counts_within(counts: Tensor, target: int, at_most: bool, tolerance: float) -> bool:
    """Return whether every count is ``target`` (at most ``target``), up to ``tolerance``."""
    excess = counts - target
    worst = excess.amax() if at_most else excess.abs().amax()
    return bool(worst <= tolerance)


def in_box(point: Tensor, tolerance: float) -> bool:
    """Return whether every entry lies in [0, 1] up to ``tolerance``; NaN does not."""
    return bool(((point >= -tolerance) & (point <= 1 + tolerance)).all())
