"""One pass through a model that has no values: what it would compute, and which layers would read one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from relaxprune.costs.counting import counted
from relaxprune.costs.work import Work
from relaxprune.inputs.layer_listener import LayerListener
from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer, find_layers
from relaxprune.support.sentences import first_line

from .stand_ins import BlockStandIns, ExpertStandIns, products


@dataclass(frozen=True)
class ReadGroup:
    """Layers that read one tensor.

    Attributes:
        layers: them.
        tokens: of a batch that they read.
    """

    layers: tuple[PrunableLayer, ...]
    tokens: int


@dataclass(frozen=True)
class MetaPass:
    """What one batch takes.

    Attributes:
        blocks: the work of all blocks; without blocks, nothing.
        outside: of everything else: embeddings, norms, the output head.
        groups: the layers, by what they read.
        unknown: why the pass could not be made, so that all of this is estimated from shapes; "" if it was made.
    """

    blocks: Work
    outside: Work
    groups: list[ReadGroup]
    unknown: str = ""


def meta_pass(
    model: nn.Module, layers: Sequence[PrunableLayer], blocks: BlockList, windows: int, length: int
) -> MetaPass:
    """Put a batch without values through a model on the meta device.

    Blocks that are built alike are gone through once. Fused experts choose by values: each is taken to get its even
    share of the tokens.

    Args:
        model: a transformers language model in evaluation mode, all of whose tensors are on the meta device.
        layers: those whose inputs are of interest.
        blocks: the model's.
        windows: of the batch.
        length: tokens of a window.
    """
    one = _Passing(model, layers, blocks, windows, length)
    reason = ""
    for alike in (True, False):  # some blocks read what an earlier one has left, and must all be gone through
        try:
            return one.run(alike)
        except Exception as error:
            reason = first_line(error)
    return one.estimated(reason)


@dataclass(frozen=True, eq=False)
class _Passing:
    """One call of ``meta_pass``."""

    model: nn.Module
    layers: Sequence[PrunableLayer]
    blocks: BlockList
    windows: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return self.windows * self.length

    def run(self, alike: bool) -> MetaPass:
        """Go through the model; through one of the blocks that are alike, if asked to."""
        every = find_layers(self.model)[0]
        ids = torch.zeros(self.windows, self.length, dtype=torch.long, device="meta")
        with ExitStack() as stack:
            counter = stack.enter_context(counted())
            stand_ins = BlockStandIns(self.blocks.modules, counter, alike)
            heard = [layer for layer in every if layer.expert is None and not self._is_away(layer, stand_ins)]
            listener = LayerListener(heard)
            experts = ExpertStandIns([layer for layer in every if layer.expert is not None], counter)
            stack.enter_context(experts.standing())
            stack.enter_context(stand_ins.standing())
            stack.enter_context(listener.listening(0, None))
            self.model(ids, use_cache=False)
        reached, missed = listener.in_order()
        names = [tuple(layer.name for layer in group) for group in (*reached, *((layer,) for layer in missed))]
        groups = self._chosen([*names, *self._repeated(names, stand_ins)])
        groups += [
            ReadGroup((layer,), experts.tokens(layer, self.tokens)) for layer in self.layers if layer.expert is not None
        ]
        return MetaPass(stand_ins.work, counter.work + (-1.0) * stand_ins.counted, groups)

    def estimated(self, reason: str) -> MetaPass:
        """Count two operations for every parameter and token, and a Gram for every layer."""
        every = sum(parameter.numel() for parameter in self.model.parameters())
        inside = sum(parameter.numel() for block in self.blocks.modules for parameter in block.parameters())
        dtype = next(self.model.parameters()).dtype
        within, outside = (products(2.0 * self.tokens * count, dtype) for count in (inside, every - inside))
        return MetaPass(within, outside, [ReadGroup((layer,), self.tokens) for layer in self.layers], reason)

    def _is_away(self, layer: PrunableLayer, stand_ins: BlockStandIns) -> bool:
        """Return whether a layer lies in a block that is not gone through."""
        index = self.blocks.index_of(layer)
        return index is not None and index in stand_ins.firsts

    def _repeated(self, names: Sequence[tuple[str, ...]], stand_ins: BlockStandIns) -> Iterator[tuple[str, ...]]:
        """Yield the groups of blocks that are not gone through, from those of the blocks that they are like."""
        for index, first in stand_ins.firsts.items():
            own, other = f"{self.blocks.names[index]}.", f"{self.blocks.names[first]}."
            for group in names:
                if group[0].startswith(other):
                    yield tuple(own + name.removeprefix(other) for name in group)

    def _chosen(self, names: Sequence[tuple[str, ...]]) -> list[ReadGroup]:
        """Return the groups of the layers that are of interest."""
        wanted = {layer.name: layer for layer in self.layers if layer.expert is None}
        found = [tuple(wanted[name] for name in group if name in wanted) for group in names]
        return [ReadGroup(group, self.tokens) for group in found if group]
