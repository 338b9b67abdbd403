"""The steps of a run: which layers are pruned together, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer

from .batches import Batch, run_model
from .layer_listener import LayerListener


@dataclass(frozen=True, eq=False)
class Stage:
    """Layers whose Grams are gathered in the same passes.

    Attributes:
        index: the block's index; outside of the blocks, the number of blocks plus the place in the order of execution.
        layers: the layers to prune, possibly none in a block that is only passed through.
    """

    index: int
    layers: tuple[PrunableLayer, ...]


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
    collector = LayerListener(layers)
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
