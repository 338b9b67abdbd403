"""Which triangle inequalities a relaxed solution violates most."""

from __future__ import annotations

import torch
from torch import Tensor

from .cuts import Cuts

_SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))  # of the second and third entry; the first has +1
_VIOLATED = 0.01
_FEW = 0.5  # of the cuts asked for: products of two bounds that are this few leave room for the other triangles


def violated(primal: Tensor, present: Cuts, count: int) -> Cuts | None:
    """Return up to ``count`` new cuts that ``primal`` violates, the worst first, or None if it violates none.

    Products of two bounds, (1 ± x_i)(1 ± x_j) ≥ 0 (the box-RLT inequalities; Sherali and Adams, 1990), are the
    triangle inequalities (1 ± x_i ± x_j)² ≥ 1 through the constant x_0 = 1. Those without the constant are looked at
    where few products are violated: at the same number, products raise the bound more.

    Args:
        primal: (batch, n + 1, n + 1), X.
        present: the cuts that are there.
        count: cuts per row of the batch at most; all rows get the same number.
    """
    found = [
        _of_one(matrix, present.index[place], present.sign[place], count)
        for place, matrix in enumerate(primal.unbind(0))
    ]
    count = min(len(index) for index, _ in found)
    if not count:
        return None
    return Cuts(torch.stack([index[:count] for index, _ in found]), torch.stack([sign[:count] for _, sign in found]))


def _of_one(matrix: Tensor, index: Tensor, sign: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return entries (m, 3) and signs (m, 3) of new violated cuts of one row."""
    root = matrix.diagonal().rsqrt()
    moments = matrix * root * root.unsqueeze(1)
    present = _code(index, sign, len(matrix))
    values, found, signs = _products(moments, count + len(present))
    fresh = ~torch.isin(_code(found, signs, len(matrix)), present)
    values, found, signs = values[fresh], found[fresh], signs[fresh]
    if len(values) < _FEW * count:
        more, others, other_signs = _triangles(moments, count + len(present))
        fresh = ~torch.isin(_code(others, other_signs, len(matrix)), present)
        values = torch.cat([values, more[fresh]])
        found, signs = torch.cat([found, others[fresh]]), torch.cat([signs, other_signs[fresh]])
    order = values.argsort(stable=True)[:count]
    return found[order], signs[order]


def _products(moments: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, entries and signs of the most violated triangles with the constant."""
    return _triangles_from(moments, 0, count)


def _triangles(moments: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, entries and signs of the most violated triangles without the constant."""
    parts = [_triangles_from(moments, first, count) for first in range(1, len(moments) - 2)]
    if not parts:
        return _triangles_from(moments, 0, 0)
    values, index, signs = (torch.cat(group) for group in zip(*parts, strict=True))
    order = values.argsort(stable=True)[:count]
    return values[order], index[order], signs[order]


def _triangles_from(moments: Tensor, first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most violated triangles whose smallest entry is ``first``: 1 + a X_fi + b X_fj + ab X_ij < 0."""
    beside, inner = moments[first, first + 1 :], moments[first + 1 :, first + 1 :]
    n = len(beside)
    values = torch.stack([1 + a * beside.unsqueeze(1) + b * beside + a * b * inner for a, b in _SIGNS])
    values.masked_fill_(torch.ones_like(inner, dtype=torch.bool).tril_(), torch.inf)
    least = values.view(-1).topk(min(count, values.numel()), largest=False)
    place = least.indices[least.values < -_VIOLATED]
    pattern, pair = place // n**2, place % n**2
    index = torch.stack([torch.full_like(pair, first), pair // n + first + 1, pair % n + first + 1], dim=1)
    signs = moments.new_tensor(_SIGNS)[pattern]
    return values.view(-1)[place], index, torch.cat([torch.ones_like(signs[:, :1]), signs], dim=1)


def _code(index: Tensor, sign: Tensor, size: int) -> Tensor:
    """Return one number per cut (m,), the same for the same cut."""
    pattern = 2 * (sign[:, 1] < 0).to(torch.int64) + (sign[:, 2] < 0)
    return ((index[:, 0] * size + index[:, 1]) * size + index[:, 2]) * 4 + pattern
