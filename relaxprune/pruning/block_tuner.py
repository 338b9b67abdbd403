"""Tuning the kept weights of a whole block together, against what the dense block puts out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.inputs.dense_stream import DenseStream
from relaxprune.inputs.propagation import Pass, Propagation, Rerun
from relaxprune.inputs.stages import Stage
from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

HELD_OUT = 4  # every fourth batch is held out, to see when to stop
_RATE = 3e-3  # Adam's rate, of the root mean square of a layer's kept weights


@dataclass(frozen=True)
class BlockTuning:
    """The gain of tuning one block.

    Attributes:
        block: index of the block.
        epochs: passes over the batches whose weights were kept; 0 if none improved the held-out batches.
        steps: optimiser steps up to then.
        error_before, error_after: on the batches that were tuned on, the mean over tokens of ‖y − ỹ‖² / ‖y‖²: y is what
            the dense block puts out, ỹ the pruned one. What reads it normalises it token by token as well.
        held_out_before, held_out_after: the same on the batches held out.
        seconds: time it took.
    """

    block: int
    epochs: int
    steps: int
    error_before: float
    error_after: float
    held_out_before: float
    held_out_after: float
    seconds: float


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
        self.layers = [layer for layer in stage.layers if layer.parameter in masks and tunable(layer)]
        self.kept = [layer.as_stored(masks[layer.parameter]) for layer in self.layers]
        self.propagation, self.dense = propagation, dense
        reached = [one.number for one in propagation.passes(stage) if one.batch.kept is None or one.batch.kept.any()]
        self.held_out = set(reached[1::HELD_OUT] or reached)

    def run(self, epochs: int) -> BlockTuning:
        """Tune for at most ``epochs`` passes over the batches, and leave the best weights in the model."""
        started = time.perf_counter()
        weights = [layer.weight.detach() for layer in self.layers]
        masters = [weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True) for weight in weights]
        rates = [_RATE * float(_rms(master, kept)) for master, kept in zip(masters, self.kept, strict=True)]
        optimiser = torch.optim.Adam([{"params": [m], "lr": r} for m, r in zip(masters, rates, strict=True)])
        before = self._errors()
        best, best_errors, taken, steps = [weight.clone() for weight in weights], before, 0, 0
        with self._tracked() as parameters:
            for epoch in range(1, epochs + 1):
                for one, target in self._pairs(held_out=False):
                    with torch.enable_grad():
                        loss, size = _error(one.run(), target, one.batch.kept)
                        if not size:
                            continue
                        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
                    for master, slope, kept in zip(masters, slopes, self.kept, strict=True):
                        master.grad = None if slope is None else slope.to(master.dtype) * kept
                    optimiser.step()
                    steps += 1
                    self._write(masters)
                errors = self._errors()
                if not errors[1] < best_errors[1]:  # also if it is NaN
                    break
                best, best_errors, taken = [master.clone() for master in masters], errors, epoch
        self._write(best)
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

    @contextmanager
    def _tracked(self) -> Iterator[list[Tensor]]:
        """Have gradients for the block's pruned weights and for nothing else of the block."""
        parameters: list[Tensor] = [layer.weight for layer in self.layers]
        flags = [parameter.requires_grad for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield parameters
        finally:
            for parameter, flag in zip(parameters, flags, strict=True):
                parameter.requires_grad_(flag)

    def _write(self, masters: Sequence[Tensor]) -> None:
        """Put weights into the model, +0.0 outside the masks."""
        with torch.no_grad():
            for layer, master, kept in zip(self.layers, masters, self.kept, strict=True):
                layer.weight.copy_(master).masked_fill_(~kept, 0.0)


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


def _rms(weight: Tensor, kept: Tensor) -> Tensor:
    """Return the root mean square of the kept weights."""
    return (weight.square() * kept).sum().div(kept.sum().clamp(min=1)).sqrt()


def _error(outputs: Sequence[Tensor], target: Sequence[Tensor], kept: Tensor | None) -> tuple[Tensor, int]:
    """Return the mean over tokens of ‖y − ỹ‖² / ‖y‖², for what a block puts out first, and the number of tokens."""
    exact = torch.promote_types(outputs[0].dtype, torch.float32)
    output, wanted = outputs[0].to(exact), target[0].to(exact)  # (batch, tokens, features)
    if kept is not None and output.shape[:2] == kept.shape:
        real = kept.to(output.device)
        output, wanted = output[real], wanted[real]
    output, wanted = output.reshape(-1, output.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    sizes = wanted.square().sum(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return ((output - wanted).square().sum(dim=1) / sizes).sum() / max(1, len(output)), len(output)
