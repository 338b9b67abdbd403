"""Statistics of two streams at once: a layer's inputs in the pruned model, and those in the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relaxprune.models.layers import PrunableLayer
from relaxprune.ranks.ranks import Ranks

from .dense_stream import DenseStream
from .gram_accumulator import (
    CHUNK_TOKENS,
    GramAccumulator,
    exact_matmul,
    squared_norms,
    token_weights,
)
from .layer_listener import GramGroup, LayerListener
from .parts import ONE_PART, Parts
from .propagation import Propagation
from .stages import Stage
from .statistics import StatisticsCollector
from .streams import ONE_STREAM, Streams


class JointAccumulator(GramAccumulator):
    """A Gram E[x̃ x̃ᵀ] with E[x x̃ᵀ] and E[x xᵀ]: x̃ is read in the pruned model, x in the dense one.

    Keeps three times the bytes of a Gram.

    Attributes:
        aligned: whether every token has had its counterpart in the other stream so far. Experts get other tokens once
            the router reads something else; from then on there are no joint statistics.
    """

    def __init__(self, features: int, device: torch.device | str, *, limit: float, parts: int) -> None:
        super().__init__(features, device, limit=limit, parts=parts)
        self.aligned = True
        self._cross = torch.zeros_like(self._sum)
        self._dense = torch.zeros_like(self._sum)

    def add_dense(self, inputs: Tensor, dense: Tensor, kept: Tensor | None, where: str) -> None:
        """Count the tokens of one batch in both streams, once ``add`` has counted those of the pruned model.

        Args:
            inputs: (..., features) in the pruned model.
            dense: (..., features) in the dense model.
            kept: (batch, tokens) bool, False for padding, or None.
            where: the subject of error messages.

        Raises:
            RelaxPruneError: as ``add``, for the dense model.
        """
        if inputs.shape != dense.shape:
            self.aligned = False
        if not self.aligned:
            return
        pruned, whole = self.tokens_of(inputs, kept, where), self.tokens_of(dense, kept, f"{where} of the dense model")
        with exact_matmul(pruned.device):
            for start in range(0, len(pruned), CHUNK_TOKENS):
                one, other = (tokens[start : start + CHUNK_TOKENS] for tokens in (pruned, whole))
                compute = torch.promote_types(self._compute_dtype(one), self._compute_dtype(other))
                one, other = one.to(compute), other.to(compute)
                weighted = other * token_weights(squared_norms(one), self._limit).to(compute).unsqueeze(1)
                self._cross += (weighted.T @ one).to(self._cross.device)
                self._dense += (weighted.T @ other).to(self._dense.device)

    def joint(self, share: float = 1.0) -> tuple[Tensor, Tensor] | None:
        """Return E[y x̃ᵀ] and E[y yᵀ] of y = (1 − λ) x̃ + λ x, in the Gram's dtype; None if not aligned.

        Args:
            share: λ in [0, 1].

        Returns:
            (features, features) each.
        """
        if not self.aligned:
            return None
        own, cross, dense = (tensor / self.weight for tensor in (self._sum, self._cross, self._dense))
        mixed = (1 - share) * own + share * cross
        both = (1 - share) ** 2 * own + share * (1 - share) * (cross + cross.T) + share**2 * dense
        mixed[:, self._dead(own)] = 0
        return mixed.to(self.dtype), ((both + both.T) / 2).to(self.dtype)

    def counts(self) -> dict[str, Any]:
        """Return everything but the sums, to tell other ranks."""
        return {**super().counts(), "aligned": self.aligned}

    def unite(self, told: Sequence[dict[str, Any]], ranks: Ranks) -> None:
        """Become the sum of what all ranks have counted."""
        super().unite(told, ranks)
        self.aligned = all(counts["aligned"] for counts in told)
        if self.aligned:
            ranks.all_sum_(self._cross, self._dense)

    def clone(self) -> JointAccumulator:
        """Return an independent copy."""
        twin = super().clone()
        assert isinstance(twin, JointAccumulator)
        twin._cross, twin._dense = self._cross.clone(), self._dense.clone()
        return twin


class Reader(LayerListener):
    """Keeps what layers read in one pass of the dense model.

    Attributes:
        columns: layer -> what it read in each of its calls, (..., cols).

    Args:
        layers: the layers to listen to.
    """

    def __init__(self, layers: Sequence[PrunableLayer]) -> None:
        super().__init__(layers)
        self.columns: dict[str, list[Tensor]] = {}

    def _count(self, group: GramGroup, batch: int, kept: Tensor | None) -> GramGroup:
        """Keep the readings of a group for each of its layers."""
        columns = list(self._columns(group.layers[0]))
        self.columns |= {layer.name: columns for layer in group.layers}
        return group


class JointCollector(StatisticsCollector):
    """Gathers layers' inputs in the pruned model together with those in the dense one.

    Args:
        layers: the layers to listen to.
        streams: which tokens, and so which padding, each layer reads.
        parts: which tokens are summed apart.
    """

    def __init__(
        self, layers: Sequence[PrunableLayer], *, streams: Streams = ONE_STREAM, parts: Parts = ONE_PART
    ) -> None:
        super().__init__(layers, streams=streams, parts=parts)
        self._beside: dict[str, list[Tensor]] = {}
        self._all = 0  # tokens of the batch at hand

    def observe(self, stage: Stage, propagation: Propagation, dense: DenseStream) -> None:
        """Put every batch through a stage of the dense model, and then of the pruned one."""
        for one, whole in zip(propagation.passes(stage), dense.passes(stage), strict=True):
            reader = Reader(stage.layers)
            with reader.listening(whole.number, None):
                whole.run()
            self._beside = reader.columns
            with self.listening(one.number, one.batch.kept, one.batch.decoder_kept):
                self._all = max(map(_tokens, one.run()[:1]), default=0)
        self._beside = {}

    def _new(self, features: int, device: torch.device, limit: float) -> JointAccumulator:
        """Return the sums that a group starts with."""
        return JointAccumulator(features, device, limit=limit, parts=self._parts.count)

    def _add(self, accumulator: GramAccumulator, leader: PrunableLayer, kept: Tensor | None, batch: int) -> None:
        """Add what a group's first layer has read in both passes."""
        super()._add(accumulator, leader, kept, batch)
        assert isinstance(accumulator, JointAccumulator)
        here, there = list(self._columns(leader)), self._beside.get(leader.name, [])
        accumulator.aligned &= len(here) == len(there) and not self._routed(leader)
        where = f"the inputs of layer {leader.name!r} in batch {batch}"
        for inputs, dense in zip(here, there, strict=False):
            accumulator.add_dense(inputs, dense, kept, where)

    def _routed(self, leader: PrunableLayer) -> bool:
        """Return whether a layer reads a selection of the tokens; the streams may select others, even equally many."""
        if leader.expert is not None:
            return True
        tokens = {name: _tokens(readings[0].tensor) for name, readings in self._readings.items() if readings}
        flat = self._readings[leader.name][0].tensor.dim() < 3
        return flat and tokens[leader.name] < max(*tokens.values(), self._all)


def _tokens(inputs: Tensor) -> int:
    """Return the number of tokens of (..., features), 0 for a number alone."""
    return inputs.numel() // max(1, inputs.shape[-1]) if inputs.dim() else 0
