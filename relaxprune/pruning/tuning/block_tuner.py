"""Tuning the kept weights of a whole block together, against what the dense block puts out."""

from __future__ import annotations

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
from .kept_weights import HELD_OUT, KeptWeights

_RATE = 3e-3  # Adam's rate, of the root mean square of a layer's kept weights


class BlockTuner:
    """Tunes one block.

    Adam on a float32 copy of the kept weights, the loss one batch's error, pruned weights held at 0. After
    every pass over the batches the error on the held-out ones is taken: the best weights stay, and the first pass that
    does not improve on them ends it.

    Args:
        stage: the block and its pruned layers; fused experts stay as they are, for few tokens reach each of them.
        masks: parameter name -> (rows, cols) bool, of the layers that have been pruned: where weights may move.
        propagation: puts batches through the pruned block.
        dense: puts the same batches through the dense block.
    """

    def __init__(self, stage: Stage, masks: Mapping[str, Tensor], propagation: Propagation, dense: DenseStream) -> None:
        self.stage = stage
        layers = [layer for layer in stage.layers if layer.parameter in masks and tunable(layer)]
        self.weights = KeptWeights(layers, masks, _RATE)
        self.propagation, self.dense = propagation, dense
        reached = [one.number for one in propagation.passes(stage) if one.batch.kept is None or one.batch.kept.any()]
        self.held_out = set(reached[1::HELD_OUT] or reached)

    def run(self, epochs: int) -> BlockTuning:
        """Tune for at most ``epochs`` passes over the batches, and leave the best weights in the model."""
        started = time.perf_counter()
        before = self._errors()
        best, best_errors, taken, steps = self.weights.snapshot(), before, 0, 0
        try:
            with self.weights.tracked():
                for epoch in range(1, epochs + 1):
                    steps += self._pass()
                    errors = self._errors()
                    if not errors[1] < best_errors[1]:  # also if it is NaN
                        break
                    best, best_errors, taken = self.weights.snapshot(), errors, epoch
        finally:
            self.weights.restore(best)
        return BlockTuning(
            block=self.stage.index,
            epochs=taken,
            steps=taken * (steps // max(1, epoch)),
            error_before=before[0],
            error_after=best_errors[0],
            held_out_before=before[1],
            held_out_after=best_errors[1],
            seconds=time.perf_counter() - started,
        )

    def _pass(self) -> int:
        """Take one step on every batch that is not held out, and return their number."""
        steps = 0
        for one, target in self._pairs(held_out=False):
            with torch.enable_grad():
                loss, size = _error(one.run(), target, one.batch.kept)
                if not size:
                    continue
                self.weights.slopes(loss)
            self.weights.step()
            steps += 1
        return steps

    def _pairs(self, held_out: bool | None = None) -> Iterator[tuple[Pass, list[Tensor]]]:
        """Yield the passes of the pruned block, each with what the dense block puts out."""
        for one, whole in zip(self.propagation.passes(self.stage), self.dense.passes(self.stage), strict=True):
            if held_out is None or (one.number in self.held_out) is held_out:
                yield one, [tensor.clone() for tensor in whole.run()]

    def _errors(self) -> tuple[float, float]:
        """Return the error on the batches that are tuned on, and on those held out."""
        sums = {False: [0.0, 0.0], True: [0.0, 0.0]}
        for one, target in self._pairs():
            share = sums[one.number in self.held_out]
            loss, size = _error(one.run(), target, one.batch.kept)
            share[0] += float(loss) * size
            share[1] += size
        tuned, unseen = (loss / size if size else 0.0 for loss, size in sums.values())
        return tuned, unseen


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
    """Return the mean over tokens of ‖y − ỹ‖² / ‖y‖², for what a block puts out first, and the number of tokens."""
    exact = torch.promote_types(outputs[0].dtype, torch.float32)
    output, wanted = outputs[0].to(exact), target[0].to(exact)  # (batch, tokens, features)
    if kept is not None and output.shape[:2] == kept.shape:
        real = kept.to(output.device)
        output, wanted = output[real], wanted[real]
    output, wanted = output.reshape(-1, output.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    return relative_errors(output, wanted).sum() / max(1, len(output)), len(output)
