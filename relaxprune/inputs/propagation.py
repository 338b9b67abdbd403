"""How layers get their inputs once those before them are pruned: block by block from a recording, or by whole runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer

from .batches import Batch, run_model
from .layer_listener import LayerListener
from .portion import Portion
from .replay import Tape
from .replay_proof import UNLIKE, record_all
from .stages import Stage
from .tree import flatten

_logger = logging.getLogger("relaxprune")


@dataclass(frozen=True, eq=False)
class Pass:
    """One batch on its way through a stage.

    Attributes:
        number: index of the batch.
        batch: the batch.
        run: puts it through, and returns what comes out.
    """

    number: int
    batch: Batch
    run: Callable[[], list[Tensor]]


class Propagation(Protocol):
    """Gives the layers of a stage their inputs once all earlier stages are pruned.

    Attributes:
        portion: the batches that it puts through them.
    """

    @property
    def portion(self) -> Portion:
        """The batches that it puts through them."""

    def ordered(self, stages: Sequence[Stage]) -> list[Stage]:
        """Put the blocks' stages in the order in which they have to be pruned."""

    def passes(self, stage: Stage, batches: int | None = None) -> Iterator[Pass]:
        """Yield one pass for each of the first batches, or of all for None, that may reach the stage."""

    def advance(self, stage: Stage) -> None:
        """Make the inputs of the next stage, now that this one is pruned."""

    def fork(self) -> Propagation:
        """Return an independent copy that goes on from here."""


def observe(propagation: Propagation, stage: Stage, collector: LayerListener, batches: int | None = None) -> None:
    """Put the first batches, or all for None, through a stage while the collector listens."""
    for one in propagation.passes(stage, batches):
        with collector.listening(one.number, one.batch.kept, one.batch.decoder_kept):
            one.run()


def probe(propagation: Propagation, stage: Stage) -> Callable[[], list[Tensor]] | None:
    """Return a function that runs the stage on the largest batch and returns the outputs; None if none reaches it."""
    largest = max(propagation.passes(stage), key=lambda one: _numbers(one.batch), default=None)
    return None if largest is None else largest.run


@dataclass(frozen=True, eq=False)
class Rerun:
    """Runs the whole model for every stage: right for every model, slow for deep ones."""

    model: nn.Module
    portion: Portion

    def ordered(self, stages: Sequence[Stage]) -> list[Stage]:
        """Keep the order of the model; any order works."""
        return list(stages)

    def passes(self, stage: Stage, batches: int | None = None) -> Iterator[Pass]:
        """Run the whole model on every batch."""
        for number, batch in self.portion.head(batches).numbered():
            yield Pass(number, batch, partial(self._run, batch))

    def _run(self, batch: Batch) -> list[Tensor]:
        """Run the whole model on one batch."""
        return flatten(run_model(self.model, batch))[0]

    def advance(self, stage: Stage) -> None:
        """Do nothing: the next run goes through the pruned layers anyway."""

    def fork(self) -> Rerun:
        """Return itself: it has no position in the model."""
        return self


@dataclass(frozen=True, eq=False)
class Replay:
    """Runs one block after the other on recorded arguments."""

    blocks: Sequence[nn.Module]
    portion: Portion
    tapes: Sequence[Tape]

    def ordered(self, stages: Sequence[Stage]) -> list[Stage]:
        """Follow the calls of the recording; blocks that no batch reaches come last."""
        place = {index: number for number, index in enumerate(self.tapes[0].order)}
        return sorted(stages, key=lambda stage: place.get(stage.index, len(place)))

    def passes(self, stage: Stage, batches: int | None = None) -> Iterator[Pass]:
        """Run the block on every batch that reaches it."""
        for (number, batch), tape in zip(self.portion.head(batches).numbered(), self.tapes[:batches], strict=True):
            if stage.index in tape.calls:
                yield Pass(number, batch, partial(tape.run, stage.index, self.blocks[stage.index]))

    def advance(self, stage: Stage) -> None:
        """Put every batch through the pruned block and keep what it puts out."""
        for _, tape in zip(self.portion.numbered(), self.tapes, strict=True):
            if stage.index in tape.calls:
                tape.advance(stage.index, self.blocks[stage.index])

    def fork(self) -> Replay:
        """Copy the tapes, but not their tensors."""
        return replace(self, tapes=[tape.fork() for tape in self.tapes])


def _numbers(batch: Batch) -> int:
    """Return how many numbers a batch has: the larger of two has more tokens."""
    return sum(tensor.numel() for tensor in flatten((batch.args, batch.kwargs))[0])


def block_propagation(
    model: nn.Module, blocks: BlockList, layers: Sequence[PrunableLayer], portion: Portion
) -> tuple[Propagation, str]:
    """Replay the blocks where that gives the model's own values, else run the whole model for each block.

    All ranks that have a portion of the batches do the same.

    Args:
        model: in evaluation mode; its weights are others for a while, and then as they were.
        blocks: its blocks.
        layers: the layers whose weights will change.
        portion: calibration batches.

    Returns:
        The propagation, and its description: "replay", "rerun" or "rerun: REASON".
    """
    if not blocks.modules:
        return Rerun(model, portion), "rerun"
    inside: list[list[PrunableLayer]] = [[] for _ in blocks.modules]
    for layer in layers:
        index = blocks.index_of(layer)
        if index is not None:
            inside[index].append(layer)
    tapes, reason = record_all(model, blocks.modules, inside, portion.batches, portion.shelf)
    told = portion.ranks.exchange([reason, tapes[0].order if tapes else []])
    reason = next((found for found, _ in told if found), "")
    if not reason and any(order != told[0][1] for _, order in told):
        reason = UNLIKE
    if not reason:
        return Replay(blocks.modules, portion, tapes), "replay"
    _logger.info("the blocks %r are not replayed, the whole model is run for each: %s", blocks.name, reason)
    return Rerun(model, portion), f"rerun: {reason}"
