"""How far Adam moves weights at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The rate of Adam's steps, and when they end.

    Attributes:
        rate: at its highest.
        relative: whether it is a share of the root mean square of a parameter's kept weights.
        cosine: whether it falls to 0 along half a cosine; else it stays.
        warm_up: the share of all steps in which it first rises from 0. Adam's first steps have the full length of the
            rate in every weight, whatever the gradients are.
        patience: so many passes in a row, each no better than the one before, are the last. While the rate is high a
            pass may make things worse that later ones mend.
    """

    rate: float
    relative: bool = True
    cosine: bool = True
    warm_up: float = 0.0
    patience: int = 3

    def share(self, step: int, steps: int) -> float:
        """Return the share of the rate that step ``step`` of 0 to ``steps`` - 1 has."""
        risen = min(1.0, (step + 1) / max(1.0, self.warm_up * steps))
        return risen * (0.5 * (1 + math.cos(math.pi * step / steps)) if self.cosine else 1.0)


TUNE_RECIPES = {
    "constant": Recipe(3e-3, cosine=False, patience=1),
    "tm": Recipe(2e-5, relative=False),  # the block matching of 3BASiL (NeurIPS 2025), with masks held
}
