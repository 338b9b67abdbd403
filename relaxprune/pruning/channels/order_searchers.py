"""The ways of looking for the order of a layer's columns: for what its masks keep, or for the error they end with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from relaxprune.inputs.layer_grams import GramMaker
from relaxprune.inputs.propagation import Propagation, observe
from relaxprune.inputs.stages import Stage
from relaxprune.inputs.statistics import StatisticsCollector
from relaxprune.inputs.streams import Streams
from relaxprune.models.layers import PrunableLayer
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import NM

from .arrangement import Arrangement
from .channel_order import kept_saliency
from .channel_paths import ChannelPath
from .error_order import LayerInOrders, OrdersTried
from .permutation import Permutation

NO_BETTER = "no order was found that keeps more"
NO_LOWER = "no order was found in which masks lose less"


class OrderSearcher(Protocol):
    """Looks for the orders of the layers of a run.

    Attributes:
        pattern: the masks.
        name: its value of ``PruneOptions.permute_by``.
    """

    @property
    def pattern(self) -> NM:
        """The masks."""

    @classmethod
    def of(cls, pattern: NM, options: PruneOptions, grams: GramMaker) -> Self:
        """Make the one of a run."""

    def observe(self, stage: Stage, propagation: Propagation) -> dict[str, Tensor]:
        """Return what is needed of the inputs of each layer that a batch reaches, by its name."""

    def find(self, block: int, layer: PrunableLayer, path: ChannelPath, statistics: Tensor) -> Permutation:
        """Return the order of a layer's columns and of its producers' rows, or why it keeps the one it has."""


@dataclass(frozen=True, eq=False)
class SaliencySearcher:
    """Looks for orders in which masks keep most of the saliency W_ij^2 G_jj: Wanda's score, squared.

    Attributes:
        pattern: the masks.
        seed: of the search.
        streams: which tokens each layer reads.
    """

    pattern: NM
    seed: int
    streams: Streams

    @classmethod
    def of(cls, pattern: NM, options: PruneOptions, grams: GramMaker) -> SaliencySearcher:
        """Make the one of a run."""
        return cls(pattern, options.seed, grams.streams)

    def observe(self, stage: Stage, propagation: Propagation) -> dict[str, Tensor]:
        """Return for each layer (cols,), the mean square of its inputs: the Gram's diagonal, of all tokens alike."""
        collector = StatisticsCollector(stage.layers, streams=self.streams)
        observe(propagation, stage, collector)
        collector.unite(propagation.portion)
        energies: dict[str, Tensor] = {}
        while collector.groups:
            members, taken = collector.take()
            if taken is not None:
                energies |= {layer.name: taken.gram().diagonal().clone() for layer in members}
        return energies

    def find(self, block: int, layer: PrunableLayer, path: ChannelPath, statistics: Tensor) -> Permutation:
        """Return the order in which masks keep most."""
        scores = layer.matrix().to(device=statistics.device, dtype=statistics.dtype).square() * statistics
        found = Arrangement.of_source(path, layer.shape[1]).improved(scores, self.pattern, self.seed)
        kept = _kept_shares(scores, self.pattern, found)
        if kept[1] <= kept[0]:
            return Permutation(layer.name, block, NO_BETTER, kept[0], kept[0])
        return _applied(Permutation(layer.name, block, "", *kept), found)


@dataclass(frozen=True, eq=False)
class ErrorSearcher:
    """Looks for orders in which short solves end with a low error, on the Grams that layers are solved with.

    Where the shrinkage of Grams is chosen among several candidates, orders are searched with the middle one.

    Attributes:
        pattern: the masks.
        options: of the run.
        grams: makes the Grams.
    """

    pattern: NM
    options: PruneOptions
    grams: GramMaker

    @classmethod
    def of(cls, pattern: NM, options: PruneOptions, grams: GramMaker) -> ErrorSearcher:
        """Make the one of a run."""
        return cls(pattern, options, grams.without_selection())

    def observe(self, stage: Stage, propagation: Propagation) -> dict[str, Tensor]:
        """Return for each layer its Gram, (cols, cols)."""
        collector = self.grams.gather(stage, propagation)
        grams: dict[str, Tensor] = {}
        while collector.groups:
            members, taken = collector.take()
            if taken is not None:
                grams |= dict.fromkeys((layer.name for layer in members), self.grams.made(taken).gram)
        return grams

    def find(self, block: int, layer: PrunableLayer, path: ChannelPath, statistics: Tensor) -> Permutation:
        """Return the order in which a short solve ends lowest."""
        weight = layer.matrix().to(device=statistics.device, dtype=statistics.dtype)
        damping = self.options.ridge if self.options.moves else None
        solved = LayerInOrders(weight, statistics, self.pattern, damping, self.options.memory_budget_bytes)
        search = OrdersTried.of(solved, path, self.options.seed)
        kept = _kept_shares(solved.saliency(), self.pattern, search.best)
        before, after = search.errors[0], min(search.errors)
        if after >= before:
            same = Permutation(layer.name, block, NO_LOWER, kept[0], kept[0])
            return replace(same, by="error", error_before=before, error_after=before)
        found = replace(Permutation(layer.name, block, "", *kept), by="error", error_before=before, error_after=after)
        return _applied(found, search.best)


SEARCHERS: Mapping[str, type[OrderSearcher]] = {"error": ErrorSearcher, "saliency": SaliencySearcher}


def _kept_shares(scores: Tensor, pattern: NM, found: Arrangement) -> tuple[float, float]:
    """Return which share of some scores, (rows, cols), masks can keep in the source's order and in another one."""
    orders = scores, scores[:, found.columns().to(scores.device)]
    before, after = (kept_saliency(values, pattern.keep, pattern.group) for values in orders)
    total = float(scores.sum(dtype=torch.float64)) or 1.0
    return before / total, after / total


def _applied(permutation: Permutation, found: Arrangement) -> Permutation:
    """Return a permutation with the orders of an arrangement."""
    return replace(permutation, columns=tuple(found.columns().tolist()), rows=tuple(found.rows().tolist()))
