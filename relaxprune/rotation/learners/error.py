"""Rotations that lower what masks lose, mask and basis in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.options.target import Target

from .descent import Descent


@dataclass(frozen=True, kw_only=True)
class Error(Descent):
    """Lowers Σ W_ij² G_jj over what is pruned.

    Pruned is what has the smallest W_ij² G_jj in the set that is meant to follow: at every step the masks are those of
    the basis at hand, and the basis moves with the masks held.
    """

    name: ClassVar[str] = "error"

    def loss(self, weight: Tensor, energy: Tensor, total: Tensor, target: Target) -> Tensor:
        """Return the share of trace(W G Wᵀ), the same in every basis, that is lost.

        Raises:
            RelaxPruneError: the target does not fit the matrix.
        """
        saliency = weight.square() * energy
        rows, cols = weight.shape
        kept = target.polytope_of("in a rotated basis", (rows, cols)).round(saliency.detach()).to(torch.bool)
        tiny = torch.finfo(weight.dtype).tiny
        return saliency.masked_fill(kept, 0.0).sum() / total.clamp_min(tiny)
