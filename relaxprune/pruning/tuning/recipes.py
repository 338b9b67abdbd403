"""How far Adam moves weights at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The rate of Adam's steps.

    Attributes:
        rate: at the start.
        relative: whether it is a share of the root mean square of a parameter's kept weights.
        cosine: whether it falls to 0 along half a cosine; else it stays.
    """

    rate: float
    relative: bool = True
    cosine: bool = True

    def share(self, step: int, steps: int) -> float:
        """Return the share of the rate that step ``step`` of 0 to ``steps`` - 1 has."""
        return 0.5 * (1 + math.cos(math.pi * step / steps)) if self.cosine else 1.0


TUNE_RECIPES = {
    "constant": Recipe(3e-3, cosine=False),
    "tm": Recipe(2e-5, relative=False),  # the block matching of 3BASiL (NeurIPS 2025), with masks held
}
