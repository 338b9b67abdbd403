"""A pruned model as a whole, and how far it is from the dense model's predictions on windows of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from relaxprune.models.blocks import BlockList
from relaxprune.problems.errors import RelaxPruneError

from .predictions import DensePredictions


class WholeModel:
    """A pruned model, and the windows that all of its layers are changed on together.

    Every fourth window is held out. What a change is worth is judged on these: the distance from the dense predictions
    on a window is divided by what it was at the start, and the mean of these ratios counts, so that no kind of text
    outweighs the others.

    Attributes:
        model: the pruned model.
        blocks: its blocks.
        predictions: what it predicted while it was dense, and on which windows.
        held_out: the numbers of the windows that are held out.
        tuned: those of the others.
        sample: as many of the others as are held out, to see how far they are.
    """

    def __init__(self, model: nn.Module, blocks: BlockList, predictions: DensePredictions) -> None:
        self.model, self.blocks, self.predictions = model, blocks, predictions
        self.held_out, self.tuned = predictions.windows.held_out, predictions.windows.tuned
        self.sample = self.tuned[:: max(1, len(self.tuned) // len(self.held_out))][: len(self.held_out)]

    @property
    def measure(self) -> str:
        """What is measured: "divergence" or "error"."""
        return self.predictions.measure

    def start(self, what: str) -> tuple[list[float], float]:
        """Return the held-out distances, and the mean of the sample's, at the start.

        Args:
            what: is about to be done, for the error.

        Raises:
            RelaxPruneError: the predictions of the pruned model are not finite.
        """
        start, sample = self.distances(self.held_out), mean(self.distances(self.sample))
        if not math.isfinite(sum(start) + sample):
            raise RelaxPruneError(f"{what} needs predictions of the pruned model that are finite, got NaN or Inf")
        return start, sample

    def distances(self, windows: Sequence[int]) -> list[float]:
        """Return the mean over its tokens of the distance from the dense predictions, of each window."""
        found = (self.predictions.distance(window) for window in windows)
        return [float(distance) / count for distance, count in found]


def score(found: Sequence[float], start: Sequence[float]) -> float:
    """Return the mean ratio of distances to what they were at the start: lower is better."""
    return mean([one / before if before else 1.0 for one, before in zip(found, start, strict=True)])


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)
