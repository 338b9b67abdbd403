"""Which triangle inequalities a relaxed solution violates most."""

from __future__ import annotations

import torch
from torch import Tensor

from relaxprune.solvers.cuts import Cuts

_SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))


def violated(primal: Tensor, count: int) -> Cuts:
    """Return the ``count`` products of two bounds that ``primal`` violates most, or satisfies least.

    With x_0 = 1 they are the triangle inequalities through the constant: (1 ± x_i)(1 ± x_j) ≥ 0, which is
    (1 ± x_i ± x_j)² ≥ 1 (the box-RLT inequalities; Sherali and Adams, 1990).

    Args:
        primal: (batch, n + 1, n + 1), X with unit diagonal.
        count: cuts per row of the batch; fewer where there are fewer pairs.
    """
    batch, size = primal.shape[:2]
    one = primal[:, 0, 1:]
    body = primal[:, 1:, 1:]
    above = torch.ones(size - 1, size - 1, dtype=torch.bool, device=primal.device).triu(1)
    values = torch.stack([1 + i * one.unsqueeze(2) + j * one.unsqueeze(1) + i * j * body for i, j in _SIGNS], dim=1)
    values.masked_fill_(~above, torch.inf)
    count = min(count, 4 * (size - 1) * (size - 2) // 2)
    least = values.view(batch, -1).topk(count, dim=1, largest=False).indices
    pattern, place = least // (size - 1) ** 2, least % (size - 1) ** 2
    index = torch.stack([torch.zeros_like(place), place // (size - 1) + 1, place % (size - 1) + 1], dim=2)
    signs = primal.new_tensor(_SIGNS)[pattern]
    return Cuts(index, torch.cat([torch.ones_like(signs[..., :1]), signs], dim=2))
