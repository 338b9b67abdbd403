"""The steps of a run: which layers are pruned together, in which order, and how their inputs are made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from .blocks import BlockList
from .layers import PrunableLayer
from .replay import Tape, record_all
from .state import Batch, run_model
from .statistics import StatisticsCollector
from .tree import flatten

logger = logging.getLogger("relaxprune")


@dataclass(frozen=True, eq=False)
class Stage:
    """Layers whose Grams are gathered in the same passes.

    Attributes:
        index: the block's index; outside of the blocks, the number of blocks plus the place in the order of execution.
        layers: the layers to prune, possibly none in a block that is only passed through.
    """

    index: int
    layers: tuple[PrunableLayer, ...]


class Propagation(Protocol):
    """Gives the layers of a stage their inputs, after all earlier stages were pruned."""

    def ordered(self, stages: Sequence[Stage]) -> list[Stage]:
        """Put the blocks' stages in the order in which they have to be pruned."""

    def observe(self, stage: Stage, collector: StatisticsCollector, batches: int | None = None) -> None:
        """Put the first batches, or all for None, through the stage while the collector listens."""

    def probe(self, stage: Stage) -> Callable[[], list[Tensor]] | None:
        """Return what puts one batch, the largest, through the stage and gives what comes out; None if none does."""

    def advance(self, stage: Stage) -> None:
        """Make the inputs of the next stage, now that this one is pruned."""


@dataclass(frozen=True, eq=False)
class Rerun:
    """Runs the whole model for every stage: right for every model, slow for deep ones."""

    model: nn.Module
    batches: Sequence[Batch]

    def ordered(self, stages: Sequence[Stage]) -> list[Stage]:
        """Keep the order of the model: every order would do."""
        return list(stages)

    def observe(self, stage: Stage, collector: StatisticsCollector, batches: int | None = None) -> None:
        """Put batches through the model while the collector listens."""
        for number, batch in enumerate(self.batches[:batches]):
            with collector.listening(number, batch.kept, batch.decoder_kept):
                run_model(self.model, batch)

    def probe(self, stage: Stage) -> Callable[[], list[Tensor]] | None:
        """Run the whole model on its largest batch."""
        batch = max(self.batches, key=_numbers)
        return lambda: flatten(run_model(self.model, batch))[0]

    def advance(self, stage: Stage) -> None:
        """Do nothing: the next run goes through the pruned layers anyway."""


@dataclass(frozen=True, eq=False)
class Replay:
    """Runs one block after the other on recorded arguments."""

    blocks: Sequence[nn.Module]
    batches: Sequence[Batch]
    tapes: Sequence[Tape]

    def ordered(self, stages: Sequence[Stage]) -> list[Stage]:
        """Follow the calls of the recording; blocks that no batch reaches come last."""
        place = {index: number for number, index in enumerate(self.tapes[0].order)}
        return sorted(stages, key=lambda stage: place.get(stage.index, len(place)))

    def observe(self, stage: Stage, collector: StatisticsCollector, batches: int | None = None) -> None:
        """Put batches through the block while the collector listens."""
        pairs = zip(self.batches[:batches], self.tapes[:batches], strict=True)
        for number, (batch, tape) in enumerate(pairs):
            if stage.index in tape.calls:
                with collector.listening(number, batch.kept, batch.decoder_kept):
                    tape.run(stage.index, self.blocks[stage.index])

    def probe(self, stage: Stage) -> Callable[[], list[Tensor]] | None:
        """Run the block on the largest batch that reaches it; later blocks see nothing of this one but its outputs."""
        reached = [number for number, tape in enumerate(self.tapes) if stage.index in tape.calls]
        if not reached:
            return None
        tape = self.tapes[max(reached, key=lambda number: _numbers(self.batches[number]))]
        return lambda: tape.run(stage.index, self.blocks[stage.index])

    def advance(self, stage: Stage) -> None:
        """Put every batch through the pruned block and keep what it puts out."""
        for tape in self.tapes:
            if stage.index in tape.calls:
                tape.advance(stage.index, self.blocks[stage.index])


def _numbers(batch: Batch) -> int:
    """Return how many numbers a batch has: the larger of two has more tokens."""
    return sum(tensor.numel() for tensor in flatten((batch.args, batch.kwargs))[0])


@dataclass(frozen=True, eq=False)
class Agenda:
    """The stages of a run.

    Attributes:
        before: layers outside of the blocks that are called before any block, in the order of their calls.
        blocks: one stage per block, in the order of the list.
        after: the other layers outside of the blocks.
    """

    before: list[Stage]
    blocks: list[Stage]
    after: list[Stage]

    @property
    def count(self) -> int:
        """Number of stages."""
        return len(self.before) + len(self.blocks) + len(self.after)


def make_agenda(model: nn.Module, layers: Sequence[PrunableLayer], blocks: BlockList, batch: Batch) -> Agenda:
    """Decide the order of the work; runs the model once if layers outside of the blocks are to be pruned.

    Outside of the blocks, layers that share an input form one stage, so that errors propagate from stage to stage.
    """
    inside: dict[int, list[PrunableLayer]] = {index: [] for index in range(len(blocks.modules))}
    outside: list[PrunableLayer] = []
    for layer in layers:
        index = blocks.index_of(layer)
        (outside if index is None else inside[index]).append(layer)
    block_stages = [Stage(index, tuple(members)) for index, members in inside.items()]
    if not outside:
        return Agenda([], block_stages, [])
    before, after = _order_outside(model, outside, blocks, batch)
    stages = [Stage(len(blocks.modules) + place, members) for place, members in enumerate([*before, *after])]
    return Agenda(stages[: len(before)], block_stages, stages[len(before) :])


def _order_outside(
    model: nn.Module, layers: Sequence[PrunableLayer], blocks: BlockList, batch: Batch
) -> tuple[list[tuple[PrunableLayer, ...]], list[tuple[PrunableLayer, ...]]]:
    """Group layers by their input and put the groups in the order of execution: before the first block, and after."""
    collector = StatisticsCollector(layers, multiply=False)
    called_before: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda _module, _args: called_before.append(len(collector.order)))
        for block in blocks.modules
    ]
    try:
        with collector.listening(0, batch.kept):
            run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    place = {name: number for number, name in enumerate(collector.order)}
    reached, left = collector.in_order()
    missed = [(layer,) for layer in left]  # by the first batch; others may reach them
    first_block = called_before[0] if called_before else 0
    before = [members for members in reached if place[members[0].name] < first_block]
    return before, [members for members in reached if members not in before] + missed


def block_propagation(model: nn.Module, blocks: BlockList, batches: Sequence[Batch]) -> tuple[Propagation, str]:
    """Replay the blocks where that gives the model's own values, else run the whole model for each block.

    Returns:
        How inputs are made, and the same in words: "replay", "rerun" or "rerun: REASON".
    """
    if not blocks.modules:
        return Rerun(model, batches), "rerun"
    tapes, reason = record_all(model, blocks.modules, batches)
    if not reason:
        return Replay(blocks.modules, batches, tapes), "replay"
    logger.info("the blocks %r are not replayed, the whole model is run for each: %s", blocks.name, reason)
    return Rerun(model, batches), f"rerun: {reason}"
