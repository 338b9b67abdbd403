"""Grams of several layers at once, one Gram for all layers that read the same tensor."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relaxprune.models.layers import PrunableLayer

from .gram_accumulator import GramAccumulator, real_tokens, squared_norms
from .layer_listener import GramGroup, LayerListener
from .parts import ONE_PART, Parts
from .portion import Portion
from .streams import ONE_STREAM, Streams


class StatisticsCollector(LayerListener):
    """Gathers the Grams of what some layers read.

    What was read in a pass is multiplied once per distinct tensor. When a group splits, the parts keep what they had in
    common until then. A layer that is called several times in a pass counts all its calls into its one Gram.
    """

    def __init__(
        self, layers: Sequence[PrunableLayer], *, streams: Streams = ONE_STREAM, parts: Parts = ONE_PART
    ) -> None:
        """Prepare for some layers.

        Args:
            layers: the layers to listen to.
            streams: which tokens, and so which padding, each layer reads.
            parts: which tokens are summed apart.
        """
        super().__init__(layers, streams=streams)
        self._parts = parts
        self._limits: Mapping[str, float] = {}

    def limit(self, norms: NormCollector, cap: float) -> None:
        """Cap the weight of tokens from now on: those of a layer at ``cap`` times the median of what ``norms`` saw.

        The groups become those that ``norms`` ended with, so that no layer shares sums with one of another limit.
        """
        self.groups = [GramGroup(group.layers, None) for group in norms.groups]
        self._limits = {group.layers[0].name: cap * norms.median(group) for group in norms.groups}

    def take(self) -> tuple[tuple[PrunableLayer, ...], GramAccumulator | None]:
        """Remove the first group.

        Returns:
            Its layers and their sum, None if no real token reached them.
        """
        group = self.groups.pop(0)
        reached = group.accumulator is not None and group.accumulator.tokens > 0
        return group.layers, group.accumulator if reached else None

    def _count(self, group: GramGroup, batch: int, kept: Tensor | None) -> GramGroup:
        """Add this pass's readings of a group's first layer, which are those of all its layers."""
        leader = group.layers[0]
        readings = self._readings.get(leader.name, [])
        if not readings:
            return group
        accumulator = group.accumulator
        if accumulator is None:
            limit = self._limit_of(leader.name)
            accumulator = self._new(leader.shape[1], readings[0].tensor.device, limit)
        self._add(accumulator, leader, kept, batch)
        return GramGroup(group.layers, accumulator)

    def _told(self, group: GramGroup) -> Any:
        """Return what a group's sum has counted, None if no token reached it."""
        reached = group.accumulator is not None and group.accumulator.tokens > 0
        return group.accumulator.counts() if reached and group.accumulator is not None else None

    def _united(
        self, layers: tuple[PrunableLayer, ...], own: GramGroup, told: Sequence[Any], portion: Portion
    ) -> GramGroup:
        """Return layers that share a group on all ranks, with the sum of what reached it on any."""
        found = [counts for counts in told if counts is not None]
        if not found:
            return GramGroup(layers, None)
        sums = own.accumulator
        if sums is None or told[portion.ranks.rank] is None:
            limit = self._limit_of(layers[0].name)
            sums = self._new(layers[0].shape[1], layers[0].weight.device, limit)
        elif layers != own.layers:
            sums = sums.clone()  # a group that was one with this one here needs its own
        sums.unite(found, portion.ranks)
        return GramGroup(layers, sums)

    def _limit_of(self, name: str) -> float:
        """Return up to which ‖x‖² tokens of the group whose first layer has this name weigh 1."""
        return self._limits.get(name, math.inf)

    def _new(self, features: int, device: torch.device, limit: float) -> GramAccumulator:
        """Return the sum that a group starts with."""
        return GramAccumulator(features, device, limit=limit, parts=self._parts.count)

    def _add(self, accumulator: GramAccumulator, leader: PrunableLayer, kept: Tensor | None, batch: int) -> None:
        """Add what a group's first layer has read in this pass."""
        if leader.expert is None:
            for part, own in self._parts.of(batch, kept, leader.name):
                for columns in self._columns(leader):
                    accumulator.add(columns, kept=own, layer=leader.name, batch=batch, part=part)
            return
        # An expert's padding is gone already, and its tokens lie in an order of its own.
        for reading, columns in zip(self._readings[leader.name], self._columns(leader), strict=True):
            for part, rows in self._parts.of_tokens(batch, reading.windows):
                some = columns if rows is None else columns[rows]
                accumulator.add(some, layer=leader.name, batch=batch, part=part)


class NormCollector(LayerListener):
    """Gathers ‖x‖² of every token that counts, and who shares what; multiplies nothing."""

    def __init__(self, layers: Sequence[PrunableLayer], *, streams: Streams = ONE_STREAM) -> None:
        """Prepare for some layers, as the base class does."""
        super().__init__(layers, streams=streams)
        self._norms: dict[str, list[Tensor]] = defaultdict(list)

    def median(self, group: GramGroup) -> float:
        """Return the lower median of ‖x‖² over a group's tokens that are not zero, infinity if there are none."""
        seen = self._norms[group.layers[0].name]
        norms = torch.cat(seen) if seen else torch.zeros(0)
        norms = norms[norms != 0]
        return float(norms.median()) if norms.numel() else math.inf

    def _told(self, group: GramGroup) -> Any:
        """Return the norms of a group's tokens, None if no token reached it."""
        seen = self._norms[group.layers[0].name]
        return torch.cat(seen) if seen else None

    def _united(
        self, layers: tuple[PrunableLayer, ...], own: GramGroup, told: Sequence[Any], portion: Portion
    ) -> GramGroup:
        """Return layers that share a group on all ranks; their norms become those of all ranks."""
        for layer in layers:
            self._norms[layer.name] = [norms.to(layer.weight.device) for norms in told if norms is not None]
        return GramGroup(layers, None)

    def _count(self, group: GramGroup, batch: int, kept: Tensor | None) -> GramGroup:
        """Note this pass's norms for every layer of a group, which may split later."""
        leader = group.layers[0]
        kept = None if leader.expert is not None else kept
        for columns in self._columns(leader):
            tokens = real_tokens(columns, kept, f"the inputs of layer {leader.name!r} in batch {batch}")
            norms = squared_norms(tokens)
            for layer in group.layers:
                self._norms[layer.name].append(norms)
        return group
