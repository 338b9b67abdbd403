"""Layers of a realistic kind, too large to enumerate and small enough to be quick."""

from __future__ import annotations

import torch
from torch import Tensor

from relaxprune import NM, KSparse, MaskProblem
from relaxprune.problems import Polytope

from .enumeration import Rule
from .random_problems import Draw

SHAPE = (6, 24)
POLYTOPES: dict[str, tuple[Polytope, Rule]] = {
    "row": (KSparse(12), Rule.groups(SHAPE, 12, 24)),
    "row at most": (KSparse(12, at_most=True), Rule.groups(SHAPE, 12, 24, at_most=True)),
    "layer": (KSparse(70, "layer"), Rule.layer(SHAPE, 70)),
    "layer at most": (KSparse(70, "layer", at_most=True), Rule.layer(SHAPE, 70, at_most=True)),
    "2:4": (NM(2, 4), Rule.groups(SHAPE, 2, 4)),
    "2:4 at most": (NM(2, 4, at_most=True), Rule.groups(SHAPE, 2, 4, at_most=True)),
}


def correlated_gram(cols: int, draw: Draw, rank: int | None = None) -> Tensor:
    """The second moment of inputs with a few strong directions, as real layers have: (cols, cols) float64."""
    inputs = draw.normal(rank or 3 * cols, cols) + 2 * draw.normal(rank or 3 * cols, 3) @ draw.normal(3, cols)
    inputs = inputs * 10 ** draw.uniform(-0.5, 0.5, cols)
    return inputs.T @ inputs / len(inputs)


def layer(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float64, fixed: bool = False, rank: int | None = None
) -> tuple[MaskProblem, Rule]:
    """A (6, 24) problem over one of ``POLYTOPES``, with its rule; ``fixed`` fixes a third of some feasible mask."""
    draw = Draw(seed)
    polytope, rule = POLYTOPES[name]
    weight, gram = draw.normal(*SHAPE).to(dtype), correlated_gram(SHAPE[1], draw, rank)
    kept = pruned = None
    if fixed:
        mask = polytope.round(draw.uniform(0, 1, *SHAPE))
        kept, pruned = mask & draw.bits(0.3, *SHAPE), ~mask & draw.bits(0.3, *SHAPE)
    problem = MaskProblem(weight, gram, polytope, fixed_kept=kept, fixed_pruned=pruned)
    return problem, rule.fixing(kept, pruned)
