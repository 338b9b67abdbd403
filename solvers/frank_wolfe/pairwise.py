"""Pairwise Frank-Wolfe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .engine.vertex_moves import ActiveSetSolver, ActiveSetState, Move


@dataclass(frozen=True)
class Pairwise(ActiveSetSolver):
    """Pairwise Frank-Wolfe with exact line search: weight moves from the worst active vertex to the oracle's.

    A step of full length drops the worst vertex. Lacoste-Julien and Jaggi, NeurIPS 2015, arXiv 1511.05932, algorithm 2.
    The active set is explicit, so memory grows with the iterations.

    Args:
        dtype: ``"float32"`` or ``"float64"``; gaps below about 1e-4 need the latter.
        active_bytes: bound on the stored vertices of a band of rows, one byte an entry.
    """

    name: ClassVar[str] = "pfw"
    summary: ClassVar[str] = "pairwise Frank-Wolfe with an active set (small problems, reference)"

    def choose(self, state: ActiveSetState, half_gradient: Tensor, vertex: Tensor) -> Move:
        """Move weight from the active vertex of highest cost to the oracle's."""
        active = state.active
        away = active.costs(half_gradient).nan_to_num(nan=-torch.inf).argmax(dim=0)
        slot = active.slot_of(vertex, torch.ones_like(away, dtype=torch.bool))
        weight = active.weights[away, torch.arange(len(away), device=away.device)]
        return Move(vertex - active.at(away), weight, slot, away, torch.zeros_like(weight))
