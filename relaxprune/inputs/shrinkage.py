"""Shrinking a Gram towards its diagonal, and how far: by estimate from how much its two halves differ, or by choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .gram_accumulator import GramAccumulator


@dataclass(frozen=True, kw_only=True)
class ShrinkageChoice:
    """How far a Gram is shrunk, chosen on text that was held out.

    Attributes:
        share: λ, the candidate that is best on average.
        candidates: the values tried.
        errors: of each candidate, the mean error of its layers on held-out text over that of Wanda's masks, a geometric
            mean; empty if no text could be held out.
        held_out: the same by what was held out.
    """

    share: float
    candidates: tuple[float, ...]
    errors: tuple[float, ...]
    held_out: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> ShrinkageChoice:
        """Return the choice of which these are the attributes, with lists in the place of tuples."""
        return cls(
            share=facts["share"],
            candidates=tuple(facts["candidates"]),
            errors=tuple(facts["errors"]),
            held_out={name: tuple(errors) for name, errors in facts["held_out"].items()},
        )


def shrink(gram: Tensor, share: float) -> Tensor:
    """Return (1 − λ) G + λ Diag(G), which is positive semidefinite if G is.

    Args:
        gram: (cols, cols), changed in place.
        share: λ in [0, 1]. 0 leaves G as it is; 1 leaves the diagonal only, for which Wanda's mask is optimal.
    """
    if share:
        diagonal = gram.diagonal().clone()
        gram.mul_(1 - share).diagonal().copy_(diagonal)
    return gram


def estimate(accumulator: GramAccumulator) -> float:
    """Return the λ that brings the shrunk Gram nearest to the Gram of all text, in correlation scaling.

    The mean squared error of (1 − λ) C + λ I off the diagonal is smallest at λ = Σ Var(C_ij) / Σ E C_ij²
    (Schäfer and Strimmer 2005, target D; Ledoit and Wolf 2004). Tokens of one text are far from independent, so the
    variance is not taken over tokens: with A and B the means of the even and the odd batches and a, b their weights,
    the mean over all has the variance (A_ij − B_ij)² a b / (a + b)², up to the chance of one split, of which the sum
    over all entries leaves little. It falls as more tokens come in, and λ with it.

    Args:
        accumulator: of two parts, the even and the odd batches.

    Returns:
        λ in [0, 1]; 1 if one half has no token, and the Gram's accuracy is unknown.
    """
    even_weight, odd_weight = accumulator.part_weight([0]), accumulator.part_weight([1])
    if not even_weight or not odd_weight:
        return 1.0
    even, odd = accumulator.mean([0]), accumulator.mean([1])
    total = even_weight + odd_weight
    difference, mean = even - odd, even.mul_(even_weight / total).add_(odd, alpha=odd_weight / total)
    diagonal = mean.diagonal().clone()
    root = torch.where(diagonal > 0, diagonal, torch.inf).rsqrt()  # 0 for a feature that is always 0
    noise, signal = (_energy_beside_diagonal(matrix, root) for matrix in (difference, mean))
    if signal == 0:
        return 0.0
    return min(1.0, noise * even_weight * odd_weight / total**2 / signal)


def _energy_beside_diagonal(matrix: Tensor, root: Tensor) -> float:
    """Return the sum of squares off the diagonal of Diag(root) M Diag(root); changes ``matrix``."""
    matrix.mul_(root.unsqueeze(1)).mul_(root).diagonal().zero_()
    return float(matrix.square_().sum())
