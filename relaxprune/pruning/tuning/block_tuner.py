"""Tuning the kept weights of a whole block together, against what the dense block puts out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from relaxprune.inputs.dense_stream import DenseStream
from relaxprune.inputs.propagation import Pass, Propagation, Rerun
from relaxprune.inputs.stages import Stage
from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .distances import relative_errors
from .gains import BlockTuning
from .hearing import outputs_of
from .held_out import held_out
from .kept_weights import KeptWeights
from .parts import Part
from .recipes import Recipe

_logger = logging.getLogger("relaxprune")


class BlockTuner:
    """Tunes one block, or a part of one.

    Adam on a float32 copy of the kept weights, the loss one batch's error, pruned weights held at 0. After
    every pass over the batches the error on the held-out ones is taken: the best weights stay, and passes that get
    worse one after the other end it, as many as the recipe allows.

    Args:
        stage: the block.
        part: what of it is tuned.
        supports: parameter name -> (rows, cols) bool, where the weights of the part's layers may move.
        propagation: puts batches through the pruned block.
        dense: puts the same batches through the dense block.
        recipe: how far weights move.
    """

    def __init__(
        self,
        stage: Stage,
        part: Part,
        supports: Mapping[str, Tensor],
        propagation: Propagation,
        dense: DenseStream,
        recipe: Recipe,
    ) -> None:
        self.stage, self.part, self.recipe = stage, part, recipe
        self.weights = KeptWeights(part.layers, supports, recipe)
        self.propagation, self.dense = propagation, dense
        self.held_out: set[int] = set()
        self.steps = 0  # of a pass

    def run(self, epochs: int) -> BlockTuning | None:
        """Tune for at most ``epochs`` passes over the batches, and leave the best weights in the model.

        Returns:
            The gain; None if no batch reaches the part in the pruned model and in the dense one.
        """
        started = time.perf_counter()
        sums = self._sums()
        if not sums:
            _logger.warning("no batch calls %r of block %d, which is not tuned", self.part.name, self.stage.index)
            return None
        reached = list(sums)
        self.held_out = set(held_out(reached) or reached)
        self.steps = len(reached) - len(self.held_out)
        before = self._errors(sums)
        with self.weights.tracked():
            taken, after = self.weights.improve(epochs, lambda number: self._pass(number, epochs), _held_out, before)
        return BlockTuning(
            block=self.stage.index,
            epochs=taken,
            steps=taken * self.steps,
            error_before=before[0],
            error_after=after[0],
            held_out_before=before[1],
            held_out_after=after[1],
            seconds=time.perf_counter() - started,
            part=self.part.name,
        )

    def _pass(self, number: int, epochs: int) -> tuple[float, float]:
        """Take one step on every batch that is not held out, and return the errors after them."""
        step = (number - 1) * self.steps
        for one, target in self._pairs(held_out=False):
            with torch.enable_grad():
                loss, size = _error(self._outputs(one), target, one.batch.kept)
                if not size:
                    continue
                self.weights.slopes(loss)
            self.weights.step(self.recipe.share(step, epochs * self.steps))
            step += 1
        return self._errors(self._sums())

    def _outputs(self, one: Pass) -> list[Tensor]:
        """Return what the block, or its part, puts out in a pass."""
        return one.run() if self.part.module is None else outputs_of(self.part.module, one.run)

    def _pairs(self, held_out: bool | None = None) -> Iterator[tuple[Pass, list[Tensor]]]:
        """Yield the passes of the pruned block, each with what the dense block, or its part, puts out."""
        for one, whole in zip(self.propagation.passes(self.stage), self.dense.passes(self.stage), strict=True):
            if held_out is None or (one.number in self.held_out) is held_out:
                yield one, [tensor.clone() for tensor in self._outputs(whole)]

    def _sums(self) -> dict[int, tuple[float, int]]:
        """Return the sum of the errors of its tokens, and their number, of each batch that has some."""
        found = {}
        for one, target in self._pairs():
            loss, size = _error(self._outputs(one), target, one.batch.kept)
            if size:
                found[one.number] = float(loss) * size, size
        return found

    def _errors(self, sums: Mapping[int, tuple[float, int]]) -> tuple[float, float]:
        """Return the mean error on the batches that are tuned on, and on those held out."""
        means = []
        for held in (False, True):
            parts = [pair for number, pair in sums.items() if (number in self.held_out) is held]
            size = sum(count for _, count in parts)
            means.append(sum(loss for loss, _ in parts) / size if size else 0.0)
        return means[0], means[1]


def _held_out(errors: tuple[float, float]) -> float:
    """Return the error on held-out batches, of the errors on those tuned on and those held out."""
    return errors[1]


def check_batches(tune: int, batches: int) -> None:
    """Raise RelaxPruneError if blocks are to be tuned and there are too few batches to hold one out."""
    if tune and batches < 2:
        raise RelaxPruneError(f"tune needs at least 2 batches, for one is held out, got {batches}: give more windows")


def check_replayed(tune: int, propagation: Propagation) -> None:
    """Raise RelaxPruneError if blocks are to be tuned and cannot be run by themselves."""
    if tune and isinstance(propagation, Rerun):
        raise RelaxPruneError("tune needs blocks that can be replayed one by one, and those of this model cannot")


def tunable(layer: PrunableLayer) -> bool:
    """Return whether tuning moves a layer: fused experts stay as they are, since few tokens reach each."""
    return layer.expert is None


def check_tunable(tune: int, layers: Sequence[PrunableLayer], blocks: BlockList) -> None:
    """Raise RelaxPruneError if blocks are to be tuned and none has a layer that can be."""
    if tune and not any(tunable(layer) and blocks.index_of(layer) is not None for layer in layers):
        found = (
            "layers outside of them, or fused experts, alone" if blocks.modules else "a model without a list of them"
        )
        raise RelaxPruneError(f"tune needs blocks with layers that it can move, got {found}: leave it out")


def _error(outputs: Sequence[Tensor], target: Sequence[Tensor], kept: Tensor | None) -> tuple[Tensor, int]:
    """Return the mean over tokens of ‖y − ỹ‖² / ‖y‖², for what a block puts out first, and the number of tokens.

    There are none where one of the two was not called, or with other tokens, as experts are.
    """
    if not outputs or not target or outputs[0].shape != target[0].shape:
        return torch.zeros(()), 0
    exact = torch.promote_types(outputs[0].dtype, torch.float32)
    output, wanted = outputs[0].to(exact), target[0].to(exact)  # (batch, tokens, features)
    if kept is not None and output.shape[:2] == kept.shape:
        real = kept.to(output.device)
        output, wanted = output[real], wanted[real]
    output, wanted = output.reshape(-1, output.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    return relative_errors(output, wanted).sum() / max(1, len(output)), len(output)
