"""Grams of groups of a layer's rows: tokens weighed by what they mean to the outputs of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .gram_accumulator import GramAccumulator, real_tokens
from .layer_listener import GramGroup
from .parts import ONE_PART, Parts
from .statistics import StatisticsCollector
from .streams import ONE_STREAM, Streams

TokenWeights = Mapping[str, Mapping[int, Tensor]]
"""Layer -> batch -> (windows, tokens, groups) float64, at least 0."""


class RowCollector(StatisticsCollector):
    """Gathers, beside the Gram of what layers read, one for each group of a layer's rows.

    Attributes:
        grouped: layer -> the sums of its groups; layers without weights are not in it.

    Args:
        layers: the layers to listen to.
        weights: of tokens. Layers that share a tensor have their own.
        streams: which tokens, and so which padding, each layer reads.
        parts: which tokens are summed apart, in the Gram of all rows.
    """

    def __init__(
        self,
        layers: Sequence[PrunableLayer],
        weights: TokenWeights,
        *,
        streams: Streams = ONE_STREAM,
        parts: Parts = ONE_PART,
    ) -> None:
        super().__init__(layers, streams=streams, parts=parts)
        self.grouped: dict[str, list[GramAccumulator]] = {}
        self._weights = weights

    def _count(self, group: GramGroup, batch: int, kept: Tensor | None) -> GramGroup:
        """Add this pass's readings to the Gram of all rows, and to those of every layer's groups."""
        counted = super()._count(group, batch, kept)
        for layer in group.layers:
            weights = self._weights.get(layer.name, {}).get(batch)
            if weights is not None:
                if layer.name not in self.grouped:
                    limit, device = self._limit_of(group.layers[0].name), layer.weight.device
                    sums = (GramAccumulator(layer.shape[1], device, limit=limit) for _ in range(weights.shape[-1]))
                    self.grouped[layer.name] = list(sums)
                self._add_grouped(layer, weights, kept, batch)
        return counted

    def _add_grouped(self, layer: PrunableLayer, weights: Tensor, kept: Tensor | None, batch: int) -> None:
        """Add what a layer has read in this pass to its groups' sums, with ``weights`` (windows, tokens, groups)."""
        of_tokens = real_tokens(weights, kept, f"the weights of tokens of layer {layer.name!r} in batch {batch}")
        for columns in self._columns(layer):
            read = columns.numel() // columns.shape[-1]
            if read != weights.shape[0] * weights.shape[1]:
                raise RelaxPruneError(
                    f"layer {layer.name!r} reads {read} tokens of batch {batch} in the pruned model and "
                    f"{weights.shape[0] * weights.shape[1]} in the dense one, so that weights of tokens do not fit: "
                    "exclude it, or take another objective"
                )
            for sums, own in zip(self.grouped[layer.name], of_tokens.unbind(dim=1), strict=True):
                sums.add(
                    columns, kept=kept, layer=layer.name, batch=batch, weights=own.to(columns.device, torch.float64)
                )
