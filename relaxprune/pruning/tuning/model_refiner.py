"""Refining a pruned model as a whole: all kept weights move together towards the dense model's predictions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relaxprune.inputs.checkpointing import checkpointed
from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .gains import Refinement, RefiningState
from .kept_weights import KeptWeights
from .predictions import DensePredictions
from .recipes import Recipe

_STEP_TOKENS = 1024  # about as many tokens give the gradient of a step
_LEAST_STEPS = 8  # of a pass, where there are windows enough
Listener = Callable[[str, RefiningState], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how far weights move.

    Attributes:
        passes: the most passes over the windows.
        recipe: the rate of the steps.
        seed: of the order of the windows, another one in each pass.
    """

    passes: int
    recipe: Recipe
    seed: int = 0


class ModelRefiner:
    """Refines a model that has been pruned.

    Every fourth window is held out. After every pass the distance from the dense predictions on a held-out window is
    divided by what it was at the start: the weights with the least mean of that stay, so that no kind of text outweighs
    the others. Blocks run again for their gradients.

    Args:
        model: the pruned model.
        blocks: its blocks.
        predictions: what it predicted while it was dense, and on which windows.
        schedule: how weights move.
        listen: called with "refine_start", "refine_step", "refine_pass" or "refine_done", and how far it is.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: BlockList,
        predictions: DensePredictions,
        schedule: Schedule,
        listen: Listener,
    ) -> None:
        self._model, self._blocks, self._predictions = model, blocks, predictions
        self._schedule, self._listen = schedule, listen
        self._held_out, self._tuned = predictions.windows.held_out, predictions.windows.tuned
        longest = max(predictions.tokens(number) for number in self._tuned)
        self._at_once = max(1, min(_STEP_TOKENS // longest, len(self._tuned) // _LEAST_STEPS))
        self._steps = -(-len(self._tuned) // self._at_once)  # of a pass

    def run(self, layers: Sequence[PrunableLayer], supports: Mapping[str, Tensor]) -> Refinement:
        """Move the weights of some layers, and leave the best ones in the model, also after an exception.

        Args:
            layers: the pruned layers.
            supports: parameter name -> (rows, cols) bool, where their weights may move.

        Raises:
            RelaxPruneError: the predictions of the pruned model are not finite.
        """
        started = time.perf_counter()
        weights = KeptWeights(layers, supports, self._schedule.recipe, fused=True)
        sample = self._tuned[:: max(1, len(self._tuned) // len(self._held_out))][: len(self._held_out)]
        start, tuned_before = self._distances(self._held_out), _mean(self._distances(sample))
        if not math.isfinite(sum(start) + tuned_before):
            raise RelaxPruneError("refine needs predictions of the pruned model that are finite, got NaN or Inf")
        self._tell("refine_start", 0, 0, start, start)
        taken, least = self._improve(weights, start)
        tuned_after = _mean(self._distances(sample)) if taken else tuned_before
        self._tell("refine_done", taken, taken * self._steps, start, least)
        return Refinement(
            measure=self._predictions.measure,
            passes=taken,
            steps=taken * self._steps,
            tuned_windows=len(sample),
            tuned_before=tuned_before,
            tuned_after=tuned_after,
            held_out_windows=len(start),
            held_out_before=_mean(start),
            held_out_after=_mean(least),
            seconds=time.perf_counter() - started,
        )

    def _improve(self, weights: KeptWeights, start: list[float]) -> tuple[int, list[float]]:
        """Take passes; return how many the best weights have taken, and what the held-out distances are with them."""
        order, latest = torch.Generator().manual_seed(self._schedule.seed), start

        def take(number: int) -> list[float]:
            nonlocal latest
            for step in self._pass(weights, order, number):
                self._tell("refine_step", number, step, start, latest)
            latest = self._distances(self._held_out)
            self._tell("refine_pass", number, number * self._steps, start, latest)
            return latest

        def score(found: Sequence[float]) -> float:
            return _mean([one / before if before else 1.0 for one, before in zip(found, start, strict=True)])

        with weights.tracked(self._model.parameters()), checkpointed(self._model, self._blocks):
            return weights.improve(self._schedule.passes, take, score, start)

    def _pass(self, weights: KeptWeights, order: torch.Generator, number: int) -> Iterator[int]:
        """Go once through the windows that are tuned on, in a new order; yield how many steps were taken so far."""
        shuffled = [self._tuned[place] for place in torch.randperm(len(self._tuned), generator=order).tolist()]
        done, steps = (number - 1) * self._steps, self._schedule.passes * self._steps
        for step in range(self._steps):
            tokens = 0
            for window in shuffled[step * self._at_once : (step + 1) * self._at_once]:
                with torch.enable_grad():
                    distance, count = self._predictions.distance(window)
                    weights.slopes(distance)
                tokens += count
            weights.step(self._schedule.recipe.share(done + step, steps), tokens)
            yield done + step + 1

    def _distances(self, windows: Sequence[int]) -> list[float]:
        """Return the mean over its tokens of the distance from the dense predictions, of each window."""
        found = (self._predictions.distance(window) for window in windows)
        return [float(distance) / count for distance, count in found]

    def _tell(self, kind: str, number: int, step: int, start: Sequence[float], now: Sequence[float]) -> None:
        """Tell the listener how far this is."""
        state = RefiningState(
            measure=self._predictions.measure,
            number=number,
            passes=self._schedule.passes,
            step=step,
            steps=self._schedule.passes * self._steps,
            held_out_before=_mean(start),
            held_out=_mean(now),
        )
        self._listen(kind, state)


def _mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)
