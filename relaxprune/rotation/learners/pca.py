"""The principal axes of what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Learned, Learner, Lesson, orthonormal


@dataclass(frozen=True, kw_only=True)
class PrincipalAxes(Learner):
    """Turns to the eigenvectors of the mean Gram, each scaled to trace 1 first (SliceGPT, arXiv 2401.15024).

    What it lowers is the share of the Grams' squares that is off their diagonals.
    """

    name: ClassVar[str] = "pca"

    def learn(self, lesson: Lesson) -> Learned:
        """Return the axes, the largest first."""
        grams = [one.gram.to(torch.float64) for touched in lesson.blocks for one in touched.reads]
        mean = sum((gram / gram.trace() for gram in grams), torch.zeros_like(grams[0]))
        axes = torch.linalg.eigh(mean)[1].flip(1)
        found = orthonormal(axes * torch.where(axes.sum(dim=0) < 0, -1.0, 1.0))  # a sign that does not vary
        return Learned(found, _off([found.T @ gram @ found for gram in grams]) / max(_off(grams), 1e-300))


def _off(grams: list[Tensor]) -> float:
    """Return the mean share of Grams' squares that is off their diagonals."""
    shares = [1 - float(gram.diagonal().square().sum() / gram.square().sum()) for gram in grams]
    return sum(shares) / len(shares)
