"""Drawing rows when treating all takes too long, and estimating the bound of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.problems.checks import whole_number

from .mask_certificate import Estimate

_CONFIDENCE = 0.95
_NORMAL = 1.959964  # the quantile of that confidence


def chosen_rows(
    problem: Problem, rows: int | Sequence[int] | Tensor | None, block_objective: Tensor, seed: int
) -> Tensor | None:
    """Return the rows asked for, ascending (r,) int64, or None for all.

    Raises:
        RelaxPruneError: ``rows`` is neither None, a positive number, nor distinct indices of rows.
    """
    count = problem.shape[0]
    if rows is None:
        return None
    number = row_count(rows)
    if number is not None:
        whole_number("rows", number, 1)
        if number >= count:
            return None
        height = count // len(block_objective)
        return drawn_rows(block_objective.repeat_interleave(height), int(number), seed)
    try:
        index = torch.as_tensor(rows, device=problem.device)
    except (TypeError, ValueError, RuntimeError):
        index = torch.zeros(0)
    good = index.dim() == 1 and len(index) > 0 and not index.is_floating_point() and index.dtype != torch.bool
    if not good or int(index.min()) < 0 or int(index.max()) >= count or len(index.unique()) != len(index):
        raise RelaxPruneError(f"rows must be a number, or different indices of the {count} rows, got {rows!r}")
    return index.to(torch.int64).sort().values


def row_count(rows: object) -> int | float | None:
    """Return ``rows`` if it is a number, of Python, numpy or torch, else None."""
    if isinstance(rows, Tensor) and rows.dim() == 0:
        rows = rows.item()
    if isinstance(rows, (bool, float)):
        return rows  # a number of the wrong kind, which is refused as such
    return int(rows) if isinstance(rows, Integral) else None


def inclusion(block_objective: Tensor, count: int) -> Tensor:
    """Return each row's probability of being drawn: proportional to its objective, at most 1, summing to ``count``."""
    size = block_objective.abs()
    size = size + max(float(size.sum()), 1e-300) * 1e-12 / len(size)
    certain = torch.zeros_like(size, dtype=torch.bool)
    while True:
        left = count - int(certain.sum())
        share = size.masked_fill(certain, 0.0)
        chance = torch.where(certain, 1.0, left * share / share.sum())
        if not bool((chance > 1).any()):
            return chance
        certain |= chance >= 1


def drawn_rows(block_objective: Tensor, count: int, seed: int) -> Tensor:
    """Draw ``count`` different rows by systematic sampling in random order (Madow, 1949): (count,) int64, ascending."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(block_objective), generator=generator).to(block_objective.device)
    ends = inclusion(block_objective, count)[order].cumsum(dim=0)
    start = float(torch.rand(1, generator=generator, dtype=torch.float64))
    marks = torch.arange(count, dtype=torch.float64, device=ends.device) + start
    place = torch.searchsorted(ends, marks).clamp(max=len(ends) - 1)
    return order[place.unique()].sort().values


def extrapolated(block_objective: Tensor, row_bound: Tensor, drawn: Tensor) -> Estimate:
    """Estimate the bound of all rows from the drawn ones, with a confidence interval (Horvitz and Thompson, 1952).

    Args:
        block_objective: (rows,) float64.
        row_bound: (rows,) float64.
        drawn: (r,) int64, the result of ``drawn_rows`` for these objectives.
    """
    count = len(drawn)
    weighted = row_bound[drawn] / inclusion(block_objective, count)[drawn]
    total = float(weighted.sum())
    spread = float((weighted * count).std()) / math.sqrt(count) if count > 1 else math.inf
    reach = _NORMAL * spread
    return Estimate(total, total - reach, min(total + reach, float(block_objective.sum())), _CONFIDENCE, count)
