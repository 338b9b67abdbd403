"""Refining a pruned model as a whole: all kept weights move together towards the dense model's predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.inputs.checkpointing import checkpointed
from relaxprune.models.layers import PrunableLayer

from .gains import Refinement, RefiningState
from .kept_weights import KeptWeights
from .recipes import Recipe
from .whole_model import WholeModel, mean, score

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

    After every pass the held-out windows say whether the weights are the best so far: these stay. Blocks run again for
    their gradients.

    Args:
        whole: the pruned model, and the windows.
        schedule: how weights move.
        listen: called with "refine_start", "refine_step", "refine_pass" or "refine_done", and how far it is.
    """

    def __init__(self, whole: WholeModel, schedule: Schedule, listen: Listener) -> None:
        self._whole, self._schedule, self._listen = whole, schedule, listen
        longest = max(whole.predictions.tokens(number) for number in whole.tuned)
        self._at_once = max(1, min(_STEP_TOKENS // longest, len(whole.tuned) // _LEAST_STEPS))
        self._steps = -(-len(whole.tuned) // self._at_once)  # of a pass

    def run(self, layers: Sequence[PrunableLayer], supports: Mapping[str, Tensor]) -> Refinement:
        """Move the weights of some layers, and leave the best ones in the model, also after an exception.

        Args:
            layers: the pruned layers.
            supports: parameter name -> (rows, cols) bool, where their weights may move.

        Raises:
            RelaxPruneError: the predictions of the pruned model are not finite.
        """
        started, whole = time.perf_counter(), self._whole
        weights = KeptWeights(layers, supports, self._schedule.recipe, fused=True)
        start, tuned_before = whole.start("refine")
        self._tell("refine_start", 0, 0, start, start)
        taken, least = self._improve(weights, start)
        tuned_after = mean(whole.distances(whole.sample)) if taken else tuned_before
        self._tell("refine_done", taken, taken * self._steps, start, least)
        return Refinement(
            measure=whole.measure,
            passes=taken,
            steps=taken * self._steps,
            tuned_windows=len(whole.sample),
            tuned_before=tuned_before,
            tuned_after=tuned_after,
            held_out_windows=len(start),
            held_out_before=mean(start),
            held_out_after=mean(least),
            seconds=time.perf_counter() - started,
        )

    def _improve(self, weights: KeptWeights, start: list[float]) -> tuple[int, list[float]]:
        """Take passes; return how many the best weights have taken, and what the held-out distances are with them."""
        whole, latest = self._whole, start
        order = torch.Generator().manual_seed(self._schedule.seed)

        def take(number: int) -> list[float]:
            nonlocal latest
            for step in self._pass(weights, order, number):
                self._tell("refine_step", number, step, start, latest)
            latest = whole.distances(whole.held_out)
            self._tell("refine_pass", number, number * self._steps, start, latest)
            return latest

        with weights.tracked(whole.model.parameters()), checkpointed(whole.model, whole.blocks):
            return weights.improve(self._schedule.passes, take, lambda found: score(found, start), start)

    def _pass(self, weights: KeptWeights, order: torch.Generator, number: int) -> Iterator[int]:
        """Go once through the windows that are tuned on, in a new order; yield how many steps were taken so far."""
        shuffled = [
            self._whole.tuned[place] for place in torch.randperm(len(self._whole.tuned), generator=order).tolist()
        ]
        done, steps = (number - 1) * self._steps, self._schedule.passes * self._steps
        for step in range(self._steps):
            tokens = 0
            for window in shuffled[step * self._at_once : (step + 1) * self._at_once]:
                with torch.enable_grad():
                    distance, count = self._whole.predictions.distance(window)
                    weights.slopes(distance)
                tokens += count
            weights.step(self._schedule.recipe.share(done + step, steps), tokens)
            yield done + step + 1

    def _tell(self, kind: str, number: int, step: int, start: Sequence[float], now: Sequence[float]) -> None:
        """Tell the listener how far this is."""
        state = RefiningState(
            measure=self._whole.measure,
            number=number,
            passes=self._schedule.passes,
            step=step,
            steps=self._schedule.passes * self._steps,
            held_out_before=mean(start),
            held_out=mean(now),
        )
        self._listen(kind, state)
