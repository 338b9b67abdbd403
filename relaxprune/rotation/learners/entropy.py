"""Rotations that concentrate importance on few weights (DenoiseRotator, Gu et al., arXiv 2505.23049)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.options.target import Target

from .descent import Descent


@dataclass(frozen=True, kw_only=True)
class Entropy(Descent):
    """Lowers the entropy of W_ij² G_jj, as a share of that of equal importances.

    Published is OBS importance, normalised over a matrix as here, and one rotation for each block.
    """

    name: ClassVar[str] = "entropy"

    def loss(self, weight: Tensor, energy: Tensor, total: Tensor, target: Target) -> Tensor:
        """Return the entropy of a matrix, 0 to 1, whatever the target."""
        importance = weight.square() * energy
        tiny = torch.finfo(weight.dtype).tiny
        share = importance / importance.sum().clamp_min(tiny)
        return -(share * share.clamp_min(tiny).log()).sum() / math.log(weight.numel())
