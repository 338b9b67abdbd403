"""Blended pairwise Frank-Wolfe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .engine.vertex_moves import ActiveSetSolver, ActiveSetState, Move


@dataclass(frozen=True)
class BlendedPairwise(ActiveSetSolver):
    """Blended pairwise conditional gradients with exact line search: pairwise steps inside the active set first.

    Weight moves from the worst to the best active vertex while that promises at least the Frank-Wolfe gap; otherwise a
    Frank-Wolfe step is taken, which may add a vertex. So swap steps cannot occur, and the set stays small (Tsuji,
    Tanaka and Pokutta, ICML 2022, arXiv 2110.12650, algorithm 1). A pairwise step of full length drops the worst
    vertex.

    Args:
        dtype: ``"float32"`` or ``"float64"``; gaps below about 1e-4 need the latter.
        active_bytes: bound on the stored vertices of a band of rows, one byte an entry.
    """

    name: ClassVar[str] = "bpfw"
    summary: ClassVar[str] = "blended pairwise Frank-Wolfe with a small active set (small problems, reference)"

    def choose(self, state: ActiveSetState, half_gradient: Tensor, vertex: Tensor) -> Move:
        """Compare the best pair of active vertices with the Frank-Wolfe step."""
        active = state.active
        point = state.mask.view(state.blocks, -1)
        costs = active.costs(half_gradient)
        highest, away = costs.nan_to_num(nan=-torch.inf).max(dim=0)
        lowest, best = costs.nan_to_num(nan=torch.inf).min(dim=0)
        inside = highest - lowest >= torch.linalg.vecdot(half_gradient, point - vertex)
        slot = active.slot_of(vertex, ~inside)
        pair = active.at(best) - active.at(away)
        direction = torch.where(inside.unsqueeze(1), pair, vertex - point)
        weight = active.weights[away, torch.arange(len(away), device=away.device)]
        longest = torch.where(inside, weight, 1.0)
        scale = torch.where(inside, 0.0, -1.0).to(weight.dtype)
        return Move(direction, longest, torch.where(inside, best, slot), away, scale)
