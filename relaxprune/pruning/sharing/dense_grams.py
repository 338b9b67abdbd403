"""A pass over the dense model that shows the Gram of every layer, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from relaxprune.inputs.batches import Batch
from relaxprune.inputs.layer_grams import GramMaker
from relaxprune.inputs.portion import Portion
from relaxprune.inputs.propagation import Propagation, Rerun, block_propagation
from relaxprune.inputs.stages import Agenda, Stage
from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems import Gram
from relaxprune.residency.store import store_of

Shown = tuple[tuple[PrunableLayer, ...], Gram]


@dataclass(frozen=True, eq=False)
class DenseModel:
    """A model before a run prunes it.

    Attributes:
        model: in evaluation mode; unchanged.
        blocks: its blocks.
        layers: what will be pruned.
        batches: all calibration batches.
        portion: those that this process puts through the model.
        agenda: the run's stages.
        gram_maker: makes the Grams of the run.
    """

    model: nn.Module
    blocks: BlockList
    layers: Sequence[PrunableLayer]
    batches: Sequence[Batch]
    portion: Portion
    agenda: Agenda
    gram_maker: GramMaker

    def grams(self) -> Iterator[Shown]:
        """Go through the stages of a run without pruning anything.

        Yields:
            Layers that read the same inputs, and their Gram. The sums of one block are held at a time. Layers that no
            batch reaches are left out.
        """
        rerun = Rerun(self.model, self.portion)
        for stage in (*self.agenda.before, *self.agenda.after):
            yield from self._stage(stage, rerun)
        if any(stage.layers for stage in self.agenda.blocks):
            propagation, _ = block_propagation(self.model, self.blocks, self.layers, self.portion)
            for stage in propagation.ordered(self.agenda.blocks):
                with store_of(self.model).resident(stage.index):
                    yield from self._stage(stage, propagation)
                    propagation.advance(stage)

    def _stage(self, stage: Stage, propagation: Propagation) -> Iterator[Shown]:
        """Gather one stage's Grams and hand them out one after the other."""
        if not stage.layers:
            return
        collector = self.gram_maker.gather(stage, propagation)
        while collector.groups:
            layers, sums = collector.take()
            if sums is not None:
                yield layers, Gram(self.gram_maker.made(sums).gram)
