"""Away-step Frank-Wolfe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .engine.vertex_moves import ActiveSetSolver, ActiveSetState, Move


@dataclass(frozen=True)
class AwayStep(ActiveSetSolver):
    """Away-step Frank-Wolfe with exact line search: towards the oracle's vertex, or away from the worst active one.

    Takes whichever direction descends more steeply; an away step of full length drops its vertex from the active set.
    Linear convergence on polytopes (Guélat and Marcotte, Math. Program. 1986; Lacoste-Julien and Jaggi, NeurIPS 2015,
    arXiv 1511.05932, algorithm 1). The active set is explicit, so memory grows with the iterations.

    Args:
        dtype: ``"float32"`` or ``"float64"``; gaps below about 1e-4 need the latter.
        active_bytes: bound on the stored vertices of a band of rows, one byte an entry.
    """

    name: ClassVar[str] = "afw"
    summary: ClassVar[str] = "away-step Frank-Wolfe with an active set (small problems, reference)"

    def choose(self, state: ActiveSetState, half_gradient: Tensor, vertex: Tensor) -> Move:
        """Take the steeper of the two directions."""
        active = state.active
        point = state.mask.view(state.blocks, -1)
        costs, away = active.costs(half_gradient).nan_to_num(nan=-torch.inf).max(dim=0)
        here = torch.linalg.vecdot(half_gradient, point)
        towards = here - torch.linalg.vecdot(half_gradient, vertex) >= costs - here
        slot = active.slot_of(vertex, towards)
        direction = torch.where(towards.unsqueeze(1), vertex - point, point - active.at(away))
        weight = active.weights[away, torch.arange(len(away), device=away.device)]
        rest = 1 - weight
        longest = torch.where(towards, 1.0, torch.where(rest > 0, weight / torch.where(rest > 0, rest, 1.0), 0.0))
        return Move(direction, longest, slot, away, torch.where(towards, -1.0, 1.0).to(weight.dtype))
