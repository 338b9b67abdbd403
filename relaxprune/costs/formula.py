"""The work of a run by stage, from the shapes of its layers: the formula behind ``relaxprune plan``.

docs/plan.md writes it in mathematics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from relaxprune.options.prune_options import PruneOptions

from .gram_work import adding_work, making_work
from .machine import Machine
from .network import network_bytes
from .passes import PROOF, forward_passes, gram_sums
from .planned_layer import PlannedLayer
from .work import NOTHING, Rates, Work

# Ranks divide these among them: batches of the text, or layers and bands of rows.
_BY_BATCHES, _BY_LAYERS = ("capture", "allocate", "statistics", "propagate"), ("solve",)


@dataclass(frozen=True)
class GramShape:
    """One Gram of a run.

    Attributes:
        cols: its columns.
        tokens: of one batch that are summed in it.
        block: index of its block; None outside the blocks.
    """

    cols: int
    tokens: int
    block: int | None


@dataclass(frozen=True, kw_only=True)
class TextPass:
    """What the calibration text takes on its way through the model.

    Attributes:
        blocks: the work of one batch in all blocks; without blocks, in the model.
        outside: of one batch in everything else.
        batches: how many there are.
        dtype: of the hidden states.
        reruns: how often the whole model is run for a pass through all stages; 0 if blocks are replayed.
    """

    blocks: Work
    outside: Work
    batches: int
    dtype: torch.dtype
    reruns: int = 0

    def passes(self, count: float) -> Work:
        """Return the work of so many passes of all batches through the blocks."""
        each = self.reruns * (self.blocks + self.outside) if self.reruns else self.blocks
        return count * self.batches * each


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """A run, as far as its cost goes.

    Attributes:
        layers: what is pruned.
        grams: the Grams of their inputs.
        text: what the text takes.
        options: how the run is carried out.
        solve: (rows, cols) -> the work of solving a layer of that shape.
        extra: stages that were counted elsewhere: sampling, an allocation.
        more: text that only ``refine`` reads, as a multiple of the calibration text.
    """

    layers: tuple[PlannedLayer, ...]
    grams: tuple[GramShape, ...]
    text: TextPass
    options: PruneOptions
    solve: Mapping[tuple[int, int], Work]
    extra: Mapping[str, Work]
    more: float = 0.0

    @property
    def shapes(self) -> Counter[tuple[int, int]]:
        """How many layers there are of each shape."""
        return Counter((layer.rows, layer.cols) for layer in self.layers)

    def stage_work(self) -> dict[str, Work]:
        """Return the work by stage, named as in ``PruneReport.seconds``."""
        text, passes = self.text, forward_passes(self.options, self.more)
        stages = dict(self.extra)
        stages["capture"] = text.passes(passes["capture"]) + self._proof()
        stages["statistics"] = text.passes(passes["statistics"] * self._rounds()) + self._summing()
        stages["solve"] = sum((count * self.solve[shape] for shape, count in self.shapes.items()), NOTHING)
        stages["propagate"] = NOTHING if text.reruns else text.passes(passes["propagate"])
        head = text.batches * text.outside
        for stage in ("gradients", "tune", "reselect", "refine"):
            if stage in passes:
                stages[stage] = text.passes(passes[stage]) + (NOTHING if stage == "tune" else passes[stage] * head)
        return stages

    def seconds(self, rates: Rates, machine: Machine, slowness: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the seconds of every stage.

        Of a stage that is divided every device takes the same share, at least one batch, and then what its share of the
        bytes takes on the network; what proves that blocks may be replayed is done by each.

        Args:
            rates: of one device.
            machine: how many there are, and how fast they receive.
            slowness: what a stage takes of what the rates give, 1 where it does not say.
        """
        devices, sent, seconds = machine.devices, self.network(machine.devices), {}
        for stage, done in self.stage_work().items():
            by_batches = min(devices, self.text.batches) if stage in _BY_BATCHES else 1
            spent = rates.seconds(done) / (devices if stage in _BY_LAYERS else by_batches)
            if stage == "capture":
                spent += rates.seconds(self._proof()) * (1 - 1 / by_batches)
            seconds[stage] = (slowness or {}).get(stage, 1.0) * spent
            if machine.network is not None:
                seconds[stage] += sent.get(stage, 0) / devices / machine.network
        return seconds

    def network(self, ranks: int) -> dict[str, int]:
        """Return the bytes that all ranks together receive, by stage."""
        item = self.text.dtype.itemsize if self.options.moves else 0
        widths = [gram.cols for gram in self.grams]
        return network_bytes(self.layers, widths, ranks, sums=gram_sums(self.options), moved_item=item)

    def _proof(self) -> Work:
        """Return the work of proving, on two batches, that blocks may be replayed and what layers put out."""
        count = min(2, self.text.batches) * PROOF / 2
        return count / self.text.batches * self.text.passes(1.0) + 2.0 * self.text.outside

    def _rounds(self) -> float:
        """Return how often the text goes through a block until all of its Grams are summed, on average."""
        if self.options.statistics.collect == "block":
            return 1.0
        blocks = Counter(gram.block for gram in self.grams if gram.block is not None)
        return sum(blocks.values()) / max(1, len(blocks))

    def _summing(self) -> Work:
        """Return the work of summing and making all Grams."""
        dtype, sums = self.text.dtype, float(gram_sums(self.options))
        alike = Counter((gram.cols, gram.tokens) for gram in self.grams)
        adding = (
            count * self.text.batches * adding_work(cols, tokens, dtype) for (cols, tokens), count in alike.items()
        )
        making = (count * making_work(cols) for (cols, _), count in alike.items())
        return sums * sum(adding, NOTHING) + sums * sum(making, NOTHING)
