"""The smallest entries of each row by a search for the threshold: a few passes, while a selection costs a product."""

from __future__ import annotations

import torch
from torch import Tensor

from .selection import smallest

_PASSES = 2
_OVERSHOT = 1.5  # of the way to where the threshold is expected: to have it between two trials
_REACH = 4.0  # how much further the next trial goes where it was not
_EDGE = 0.05  # of a bracket: how near to its ends the next trial may lie
_LEAST = 1e-3  # of the mean change per entry
_TINY = 1e-20  # spread of scores that are all alike
_DTYPES = (torch.float32, torch.float64)
_FROM, _TO = 128, 2**24  # entries: fewer are soon selected, more ones than that no float32 sum counts exactly


def nearly_smallest(scores: Tensor, count: int, hint: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Mark the ``count`` smallest entries of each row with 1, entries too near the threshold with a common fraction.

    Each row sums to ``count``. On accelerators, which select faster than they search, and for few entries, the
    selection is exact.

    Args:
        scores: (rows, n), finite, of order one as solvers scale them; exact selection for 16-bit floats.
        count: from 0 to n.
        hint: (rows, 3), of earlier, similar scores: the threshold, its change per entry, and their spread; None selects
            exactly.

    Returns:
        (rows, n) in the dtype of ``scores``, and the hint for the next call (None if the selection was exact).
    """
    size = scores.shape[1]
    selects = not scores.is_cpu and len(scores) > 1  # a single row would be sorted
    if selects or not 0 < count < size or not _FROM <= size <= _TO or scores.dtype not in _DTYPES:
        return smallest(scores, count), None
    return search(scores, count, hint)


def search(scores: Tensor, count: int, hint: Tensor | None) -> tuple[Tensor, Tensor]:
    """Do what ``nearly_smallest`` says by a search; 0 < count < n.

    A pass over the scores counts the entries below a trial threshold, which moves by false position once it is
    bracketed; the entries between the last two thresholds, usually few or none, share what is left of the count.
    """
    size = scores.shape[1]
    if hint is None:
        exact = smallest(scores, count)
        threshold = scores.masked_fill(exact == 0, -torch.inf).amax(dim=1, keepdim=True)
        spread = (scores - threshold).abs().mean(dim=1, keepdim=True).clamp_(min=_TINY)
        return exact, torch.cat([threshold, spread / size, spread], dim=1)
    below, wanted = torch.empty_like(scores), count + 0.5
    trial, slope, spread = hint.split(1, dim=1)
    low, high = torch.full_like(trial, -torch.inf), torch.full_like(trial, torch.inf)
    low_count, high_count = torch.zeros_like(trial), torch.full_like(trial, size)
    reach = slope * _OVERSHOT
    for _ in range(_PASSES):
        found = torch.lt(scores, trial, out=below).sum(dim=1, keepdim=True)
        fits = found < wanted
        low, low_count = torch.where(fits, trial, low), torch.where(fits, found, low_count)
        high, high_count = torch.where(fits, high, trial), torch.where(fits, high_count, found)
        width, entries = high - low, high_count - low_count
        inside = torch.addcmul(low, width, ((wanted - low_count) / entries).clamp_(_EDGE, 1 - _EDGE))
        outside = torch.addcmul(trial, wanted - found, reach)
        trial = torch.where(width < torch.inf, inside, outside)
        reach = reach * _REACH
    share = (count - low_count) / entries
    vertex = torch.lt(scores, low, out=torch.empty_like(scores))
    vertex.lerp_(torch.lt(scores, high, out=below), share)
    # Ties make the change per entry vanish, gaps make it grow; from beyond these limits it would not come back.
    slope = torch.where(width < torch.inf, (slope + width / entries) / 2, slope * 2)
    slope = torch.minimum(torch.maximum(slope, spread * (_LEAST / size)), spread * size)
    return vertex, torch.cat([trial, slope, spread], dim=1)
