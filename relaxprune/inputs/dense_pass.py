"""A pass over the dense model that shows the Gram of every layer, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems import Gram

from .batches import Batch
from .gathering import Gathering
from .stages import Agenda, Propagation, Rerun, Stage, block_propagation

Shown = tuple[tuple[PrunableLayer, ...], Gram]


def dense_grams(
    model: nn.Module, blocks: BlockList, batches: Sequence[Batch], agenda: Agenda, gathering: Gathering
) -> Iterator[Shown]:
    """Go through the stages of a run without pruning anything.

    Args:
        model: in evaluation mode; unchanged.
        blocks: its blocks.
        batches: calibration batches.
        agenda: the run's stages.
        gathering: how the run gathers its statistics.

    Yields:
        Layers that read the same inputs, and their Gram. The sums of one block are held at a time. Layers that no batch
        reaches are left out.
    """
    rerun = Rerun(model, batches)
    for stage in (*agenda.before, *agenda.after):
        yield from _grams(stage, rerun, gathering)
    if any(stage.layers for stage in agenda.blocks):
        propagation, _ = block_propagation(model, blocks, batches)
        for stage in propagation.ordered(agenda.blocks):
            yield from _grams(stage, propagation, gathering)
            propagation.advance(stage)


def _grams(stage: Stage, propagation: Propagation, gathering: Gathering) -> Iterator[Shown]:
    """Gather one stage's Grams and hand them out one after the other."""
    if not stage.layers:
        return
    collector = gathering.gather(stage, propagation)
    while collector.groups:
        layers, gathered = gathering.take(collector)
        if gathered is not None:
            yield layers, Gram(gathered.gram)
