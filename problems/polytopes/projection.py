"""Projection onto the capped simplex {0 ≤ x ≤ 1, Σ x = k}, exact and for many lines at once."""

from __future__ import annotations

import torch
from torch import Tensor

_TOLERANCE = 1e-12  # of a count, per entry of a line: what a last exact correction removes
_PASSES = 100
_FEW = 4  # lines still open go on by themselves once they are fewer than one in this many
_ZERO = 1e-100  # weights below this share of a line's largest count as zero


def project_capped(
    point: Tensor, keep: int, weights: Tensor | None = None, *, at_most: bool = False, dim: int = 1
) -> Tensor:
    """Return the point of {0 ≤ x ≤ 1, Σ x = keep} that is nearest to each line of ``point``.

    Minimises Σ_j w_j (x_j − y_j)². The answer is x_j = clip(y_j − λ / w_j, 0, 1); its sum is piecewise linear and falls
    with the price λ, whose root a Newton iteration inside a bracket finds (Ang, Ma, Liu, Huang and Wang, NeurIPS 2021,
    arXiv 2110.08471; by sorting: Wang and Lu, arXiv 1503.01002). A Newton step from the right linear piece is exact, so
    the active set is identified and solved, not approached. Entries of zero weight take up the count that the others
    leave, as near to their own values as possible: the limit of small weights.

    Args:
        point: (lines, n), or (n, lines) with ``dim=0``, any float dtype; an entry of +∞ stays at 1, one of −∞ at 0.
        keep: k, from 0 to n.
        weights: nonnegative, like ``point``; None weighs all entries alike.
        at_most: Σ x ≤ keep instead.
        dim: the dimension that runs along a line.

    Returns:
        The projection, in the shape and dtype of ``point``; computed in float64. Lines with NaN come back as NaN.
    """
    values = point.to(torch.float64)
    live = ~torch.isinf(values)
    clipped = values.clamp(0, 1)
    target = keep - (values == torch.inf).sum(dim, keepdim=True).to(torch.float64)
    if at_most:
        target = torch.minimum(target, torch.where(live, clipped, 0.0).sum(dim, keepdim=True))
    if weights is None:
        solved = _solve(values, live.to(torch.float64), target, dim)
    else:
        solved = _solve_weighted(values, live, weights.to(torch.float64), target, dim)
    return torch.where(live, solved, clipped).to(point.dtype)


def _solve_weighted(values: Tensor, live: Tensor, weights: Tensor, target: Tensor, dim: int) -> Tensor:
    """Give entries of zero weight the part of the count that the others do not want, and solve the two apart."""
    largest = torch.where(live, weights, 0.0).amax(dim, keepdim=True)
    positive = live & (weights > _ZERO * largest)
    inverse = torch.where(positive, largest / weights, 0.0)
    zero = live & ~positive
    if not bool(zero.any()):
        return _solve(values, inverse, target, dim)
    wanted = torch.where(positive, values.clamp(0, 1), 0.0).sum(dim, keepdim=True)
    share = wanted.clamp(target - zero.sum(dim, keepdim=True), target)
    return _solve(values, inverse, share, dim) + _solve(values, zero.to(torch.float64), target - share, dim)


def _solve(values: Tensor, inverse: Tensor, target: Tensor, dim: int, price: Tensor | None = None) -> Tensor:
    """Return clip(values − λ · inverse, 0, 1) with the λ of each line at which it sums to ``target``.

    Args:
        values: like the point.
        inverse: 1 / w, and 0 for entries outside the line: they come back as 0.
        target: the sums to reach, from 0 to the number of entries of the line; one per line, with ``dim`` kept.
        dim: the dimension that runs along a line.
        price: the first λ to try, shaped like ``target``.
    """
    member = inverse > 0
    values = torch.where(member, values, -torch.inf)
    tolerance = _TOLERANCE * values.shape[dim]
    low, high = _bracket(values, inverse, member, dim)
    price = torch.zeros_like(low).clamp(low, high) if price is None else price
    last = torch.full_like(price, torch.inf)
    for _ in range(_PASSES):
        moved = values - price * inverse
        found = moved.clamp(0, 1)
        excess = found.sum(dim, keepdim=True) - target
        free = torch.where(found == moved, inverse, 0.0)
        slope = free.sum(dim, keepdim=True)
        open_lines = excess.abs() > tolerance
        count = int(open_lines.sum())
        if not count:
            break
        low, high = torch.where(excess > 0, price, low), torch.where(excess < 0, price, high)
        newton = price + excess / slope
        # Newton may creep or jump between far pieces; halving the bracket whenever it does bounds the passes.
        good = (newton > low) & (newton < high) & (excess.abs() < 0.5 * last)
        last = torch.where(good, excess.abs(), torch.inf)
        price = torch.where(open_lines, torch.where(good, newton, low + (high - low) / 2), price)
        if count * _FEW < open_lines.numel():
            index = open_lines.flatten().nonzero().squeeze(1)
            few, few_inverse, few_target, few_price = (
                part.index_select(1 - dim, index) for part in (values, inverse, target, price)
            )
            found.index_copy_(1 - dim, index, _solve(few, few_inverse, few_target, dim, few_price))
            excess = excess.masked_fill(open_lines, 0.0)
            break
    else:
        found = torch.where(open_lines, _between(values, inverse, target, (low, high), dim), found)
        excess = excess.masked_fill(open_lines, 0.0)
    # The last rounding error of the sum goes to the entries inside the box.
    found = (found - torch.where(slope > 0, excess / slope, 0.0) * free).clamp(0, 1)
    return torch.where(target >= member.sum(dim, keepdim=True), member.to(found.dtype), found * (target > 0))


def _bracket(values: Tensor, inverse: Tensor, member: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the prices at which every member is 1 and at which every member is 0; 0 and 0 for lines without any."""
    low = torch.where(member, (values - 1) / inverse, torch.inf).amin(dim, keepdim=True)
    high = torch.where(member, values / inverse, -torch.inf).amax(dim, keepdim=True)
    return low.nan_to_num(posinf=0.0), high.nan_to_num(neginf=0.0)


def _between(values: Tensor, inverse: Tensor, target: Tensor, ends: tuple[Tensor, Tensor], dim: int) -> Tensor:
    """Return the mean of the answers at the two ends of a bracket that sums to ``target``.

    Needed when neighbouring float64 prices still differ in the sum, for weights many orders apart.
    """
    upper, lower = ((values - end * inverse).clamp(0, 1) for end in ends)
    lower_sum = lower.sum(dim, keepdim=True)
    share = (target - lower_sum) / (upper.sum(dim, keepdim=True) - lower_sum)
    return lower + share.nan_to_num(nan=0.0).clamp(0, 1) * (upper - lower)
