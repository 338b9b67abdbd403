"""The dense model beside the one being pruned, and the gradients of its loss at the outputs of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from relaxprune.inputs.batches import Batch
from relaxprune.inputs.block_slopes import BlockSlopes, block_slopes, ids_of
from relaxprune.inputs.checkpointing import flowing
from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.inputs.joint_statistics import Reader
from relaxprune.inputs.layer_grams import LayerGram
from relaxprune.inputs.propagation import Pass, Propagation, Rerun
from relaxprune.inputs.row_statistics import RowCollector, TokenWeights
from relaxprune.inputs.stages import Stage
from relaxprune.inputs.statistics import StatisticsCollector
from relaxprune.models.blocks import BlockList, language_model, output_heads
from relaxprune.models.layers import PrunableLayer
from relaxprune.options.objective_options import ObjectiveOptions
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.states import Shelf
from relaxprune.support.forwards import hooked_forwards

from .evidence import EVIDENCE, Evidence
from .terms import PLAIN, LossTerms

Timed = Callable[[str], AbstractContextManager[None]]


@dataclass(eq=False)
class DenseLoss:
    """Follows the dense model through its blocks, one step before they are pruned.

    One backward pass over the whole dense model, taken once blocks are known to be replayed, gives the gradient of the
    loss at what each block puts out. A block that is still dense is then run again on its own dense inputs, which the
    gradient goes back through; so the gradients at the outputs of the layers of one block are held at a time.

    Attributes:
        options: what was asked for.
        model: in evaluation mode.
        blocks: its blocks.
        batches: all calibration batches.
        signs: (windows,) float64, 1 or -1.
        shelf: where hidden states and the gradients at them are kept.
        timed: adds the time of a ``with`` block to one of the report's stages.
        weights: of the tokens of the block that was followed last, for the Grams of groups of rows; None for a kind
            without them.
    """

    options: ObjectiveOptions
    model: nn.Module
    blocks: BlockList
    batches: Sequence[Batch]
    signs: Tensor
    shelf: Shelf
    timed: Timed
    _dense: Propagation | None = None
    _slopes: BlockSlopes = field(default_factory=BlockSlopes)
    weights: TokenWeights | None = None
    _evidence: Evidence | None = None
    _apart: set[str] = field(default_factory=set)  # layers that read other tokens than those of the text

    @classmethod
    def prepare(
        cls,
        asked: PruneOptions,
        model: nn.Module,
        blocks: BlockList,
        batches: Sequence[Batch],
        shelf: Shelf,
        timed: Timed,
    ) -> DenseLoss | None:
        """Return what follows the dense model of a run, None if its objective takes no gradients."""
        if not asked.objective.active:
            return None
        draw = torch.Generator().manual_seed(asked.seed)
        windows = sum(len(ids_of(batch, number)) for number, batch in enumerate(batches))
        signs = torch.randint(0, 2, (windows,), generator=draw, dtype=torch.float64) * 2 - 1
        return cls(asked.objective, model, blocks, batches, signs, shelf, timed)

    def follow(self, stage: Stage, pruned: Propagation, *, wanted: bool) -> None:
        """Gather what the gradients say of a block's layers, and go on to the next block; it must still be dense.

        Args:
            stage: the block.
            pruned: what puts batches through the model that is being pruned, at this block; at the first one it is the
                dense model's.
            wanted: False to go on alone, as for a block whose record is at hand.
        """
        with self.timed("gradients"):
            if self._dense is None:
                self._dense = self._begun(pruned)
            self._evidence = EVIDENCE[self.options.kind](self.options, self.signs)
            for one in self._dense.passes(stage):
                slopes = self._slopes.take(one.number, stage.index)
                if wanted and stage.layers:
                    self._gather(self._evidence, stage, one, slopes)
            self._dense.advance(stage)
            weights = self._evidence.weights or {}
            self.weights = {name: own for name, own in weights.items() if name not in self._apart} or None

    def terms(self, layer: PrunableLayer, read: LayerGram, sums: StatisticsCollector) -> LossTerms:
        """Return the terms of a layer of the block that was followed last, ``PLAIN`` for one without gradients."""
        grouped: dict[str, list[GramAccumulator]] = sums.grouped if isinstance(sums, RowCollector) else {}
        if self._evidence is None or layer.name in self._apart:
            return PLAIN
        return self._evidence.terms(layer, read, grouped)

    def _begun(self, pruned: Propagation) -> Propagation:
        """Take the gradients at what all blocks put out, and return the dense model's propagation.

        Raises:
            RelaxPruneError: blocks cannot be run by themselves, or the model has no loss.
        """
        if isinstance(pruned, Rerun):
            raise RelaxPruneError(
                f"objective {self.options.kind!r} needs blocks that can be replayed one by one, and those of this "
                "model cannot: leave it out"
            )
        self._slopes = block_slopes(self.model, self.blocks, self.batches, self.shelf)
        return pruned.fork()

    def _gather(self, evidence: Evidence, stage: Stage, one: Pass, slopes: Sequence[Tensor | None]) -> None:
        """Run a block on one batch and back again, and add what its layers read and the gradients at their outputs."""
        layers = [layer for layer in stage.layers if layer.expert is None]
        reader, ids = Reader(layers), ids_of(one.batch, one.number)
        with flowing(self.model), _heard(layers) as heard, reader.listening(one.number, None):
            outputs = one.run()
        ends = [
            (output, slope)
            for output, slope in zip(outputs, slopes, strict=False)
            if slope is not None and output.requires_grad
        ]
        places = [(layer, call, out) for layer in layers for call, out in enumerate(heard.get(layer.name, []))]
        if not ends or not places:
            return
        found = torch.autograd.grad(
            [output for output, _ in ends],
            [out for _, _, out in places],
            [slope.to(output.device) for output, slope in ends],
            allow_unused=True,
        )
        counts = torch.ones(ids.shape, dtype=torch.bool) if one.batch.kept is None else one.batch.kept
        first = sum(len(ids_of(batch, number)) for number, batch in enumerate(self.batches[: one.number]))
        for (layer, call, _), gradient in zip(places, found, strict=True):
            inputs = reader.columns[layer.name][call]
            if inputs.numel() != ids.numel() * layer.shape[1]:
                self._apart.add(layer.name)
            elif gradient is not None:  # or the loss does not depend on it
                pair = _by_token(layer, inputs, gradient, ids)
                evidence.add(layer, *pair, counts.to(inputs.device), (one.number, first))


def _by_token(layer: PrunableLayer, inputs: Tensor, gradient: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return a layer's inputs and the gradients at its outputs, (windows, tokens, ·) each, in float32 or wider.

    Raises:
        RelaxPruneError: a gradient is not finite.
    """
    if not bool(torch.isfinite(gradient).all()):
        raise RelaxPruneError(f"the gradient at the output of layer {layer.name!r} holds NaN or Inf")
    exact = torch.promote_types(inputs.dtype, torch.float32)
    return inputs.detach().reshape(*ids.shape, -1).to(exact), gradient.reshape(*ids.shape, -1).to(exact)


def check_loss(options: ObjectiveOptions, model: nn.Module, layers: Sequence[PrunableLayer], blocks: BlockList) -> None:
    """Raise RelaxPruneError if gradients are to be taken of a model that predicts no tokens, or outside its blocks."""
    if not options.active:
        return
    part, what = language_model(model, blocks.name), f"objective {options.kind!r}"
    heads = {id(head) for head in output_heads(model)}
    encodes = getattr(getattr(part, "config", None), "is_encoder_decoder", False)
    if part is None or not heads or encodes:
        raise RelaxPruneError(
            f"{what} takes the gradient of the loss of predicted tokens, which needs a decoder with an output head, "
            f"got a {type(model).__name__}: leave it out"
        )
    outside = [layer.name for layer in layers if blocks.index_of(layer) is None]
    if outside:
        raise RelaxPruneError(
            f"{what} is for layers of the model's blocks, through which gradients are taken one by one, got also "
            f"{outside[0]!r}: exclude it, or leave out the objective"
        )


@contextmanager
def _heard(layers: Sequence[PrunableLayer]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what layers put out; the model goes on with copies, which it may change in place."""
    heard: dict[str, list[Tensor]] = {}

    def listen(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hear(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            heard.setdefault(name, []).append(output)
            return output.clone()

        return hear

    with hooked_forwards((layer.module, listen(layer.name)) for layer in layers):
        yield heard
