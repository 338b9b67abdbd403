"""Hooks that gather the Grams of several layers at once, one Gram for all layers that read the same tensor."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .experts import ExpertListener
from .gram_accumulator import GramAccumulator, real_tokens, squared_norms


@dataclass(frozen=True, eq=False)
class GramGroup:
    """Layers that read the same tensors in every batch so far.

    Attributes:
        layers: at least one, in the order of the model.
        accumulator: their Gram; None when no batch reached them, or when only the grouping was asked for.
    """

    layers: tuple[PrunableLayer, ...]
    accumulator: GramAccumulator | None


@dataclass(frozen=True)
class Reading:
    """One call of a layer: its input as it was, and the version that tells whether it was changed since."""

    tensor: Tensor
    version: int

    def key(self) -> Hashable:
        """Identify the tensor within one forward pass, during which it is held alive."""
        tensor = self.tensor
        return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, self.version)


class StatisticsCollector:
    """Gathers the inputs of some layers during one forward pass at a time.

    Inputs are held until the pass ends and then multiplied once per distinct tensor. Layers start in one group, and a
    group splits whenever its layers read different tensors; the parts keep what they had in common until then. A
    layer that is called several times in a pass counts all its calls into its one Gram.

    Attributes:
        groups: the partition of the layers by what they have read so far.
        calls: layer name -> the most calls in one pass.
        order: names of the layers in the order of their first call.
    """

    def __init__(
        self,
        layers: Sequence[PrunableLayer],
        *,
        multiply: bool = True,
        of_decoder: Collection[str] = (),
        halves: bool = False,
    ) -> None:
        """Prepare for some layers.

        Args:
            layers: the layers to listen to.
            multiply: False to find out only who shares what and in which order.
            of_decoder: names of the layers whose padding is ``Batch.decoder_kept``; all others have ``Batch.kept``.
            halves: keep the sums of even and odd batches apart.
        """
        self.groups: list[GramGroup] = [GramGroup(tuple(layers), None)] if layers else []
        self.calls: dict[str, int] = {layer.name: 0 for layer in layers}
        self.order: list[str] = []
        self._layers = tuple(layers)
        self._multiply = multiply
        self._of_decoder = of_decoder
        self._halves = halves
        self._limits: Mapping[str, float] = {}
        self._readings: dict[str, list[Reading]] = defaultdict(list)

    @contextmanager
    def listening(self, batch: int, kept: Tensor | None, decoder_kept: Tensor | None = None) -> Iterator[None]:
        """Listen to one forward pass, then count it; hooks are gone afterwards, also after an exception.

        Args:
            batch: index for error messages.
            kept: (batch, tokens) bool, False for padding; None when all tokens count.
            decoder_kept: the same for the layers that read the decoder's tokens.
        """
        with ExitStack() as stack:
            stack.callback(self._readings.clear)
            for layer in self._layers:
                if layer.expert is None:
                    hook = layer.module.register_forward_pre_hook(self._hook(layer), with_kwargs=True)
                    stack.callback(hook.remove)
            if any(layer.expert is not None for layer in self._layers):
                stack.enter_context(ExpertListener(self._layers, partial(self._hear, kept)))
            yield
            self._absorb(batch, kept, decoder_kept)

    def limit(self, norms: NormCollector, cap: float) -> None:
        """Cap the weight of tokens from now on: those of a layer at ``cap`` times the median of what ``norms`` saw.

        The groups become those that ``norms`` ended with, so that no layer shares sums with one of another limit.
        """
        self.groups = [GramGroup(group.layers, None) for group in norms.groups]
        self._limits = {group.layers[0].name: cap * norms.median(group) for group in norms.groups}

    def in_order(self) -> tuple[list[tuple[PrunableLayer, ...]], tuple[PrunableLayer, ...]]:
        """Return the groups that were reached, in the order of their first calls, and the layers that were not."""
        place = {name: number for number, name in enumerate(self.order)}
        reached = [group.layers for group in self.groups if group.layers[0].name in place]
        reached.sort(key=lambda members: min(place[layer.name] for layer in members))
        return reached, tuple(layer for layer in self._layers if layer.name not in place)

    def take(self) -> tuple[tuple[PrunableLayer, ...], GramAccumulator | None]:
        """Remove the first group.

        Returns:
            Its layers, and their sum, None where no real token reached them.
        """
        group = self.groups.pop(0)
        reached = group.accumulator is not None and group.accumulator.tokens > 0
        return group.layers, group.accumulator if reached else None

    def _hook(self, layer: PrunableLayer) -> Any:
        """Return the hook that notes what one layer is called with."""

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            self._note(layer, tensor)

        return note

    def _note(self, layer: PrunableLayer, tensor: Tensor) -> None:
        """Note one call of a layer."""
        if not self.calls[layer.name] and not self._readings[layer.name]:
            self.order.append(layer.name)
        self._readings[layer.name].append(Reading(tensor.detach(), tensor._version))

    def _hear(self, kept: Tensor | None, layer: PrunableLayer, inputs: Tensor, rows: Tensor | None) -> None:
        """Note what an expert reads; tokens that are padding go first, for it reads them in an order of its own."""
        if kept is not None:
            if rows is None:
                raise RelaxPruneError(
                    f"which tokens expert {layer.name!r} reads is not known, so that padding cannot be told; give "
                    "batches without padding, or exclude this layer"
                )
            inputs = inputs[kept.reshape(-1).to(rows.device)[rows]]
        if len(inputs):
            self._note(layer, inputs)

    def _absorb(self, batch: int, kept: Tensor | None, decoder_kept: Tensor | None) -> None:
        """Split the groups by what was read in this pass, and count each distinct reading once."""
        groups: list[GramGroup] = []
        for group in self.groups:
            by_key: dict[Hashable, list[PrunableLayer]] = defaultdict(list)
            for layer in group.layers:
                readings = self._readings.get(layer.name, [])
                by_key[(layer.reading() if readings else (), *(reading.key() for reading in readings))].append(layer)
                self.calls[layer.name] = max(self.calls[layer.name], len(readings))
            for part, layers in enumerate(by_key.values()):
                own = group.accumulator if part == 0 or group.accumulator is None else group.accumulator.clone()
                groups.append(GramGroup(tuple(layers), own))
        # Only now is anything added: a clone must not hold what another part read in this pass.
        self.groups = [
            self._count(group, batch, decoder_kept if group.layers[0].name in self._of_decoder else kept)
            for group in groups
        ]

    def _count(self, group: GramGroup, batch: int, kept: Tensor | None) -> GramGroup:
        """Add this pass's readings of a group's first layer, which are those of all its layers."""
        leader = group.layers[0]
        readings = self._readings.get(leader.name, [])
        if not readings or not self._multiply:
            return group
        accumulator = group.accumulator
        if accumulator is None:
            limit = self._limits.get(leader.name, math.inf)
            accumulator = self._new(leader.shape[1], readings[0].tensor.device, limit)
        self._add(accumulator, leader, kept, batch)
        return GramGroup(group.layers, accumulator)

    def _new(self, features: int, device: torch.device, limit: float) -> GramAccumulator:
        """Return the sum that a group starts with."""
        return GramAccumulator(features, device, limit=limit, halves=self._halves)

    def _add(self, accumulator: GramAccumulator, leader: PrunableLayer, kept: Tensor | None, batch: int) -> None:
        """Add what a group's first layer has read in this pass."""
        kept = None if leader.expert is not None else kept  # its padding is gone already
        for columns in self._columns(leader):
            accumulator.add(columns, kept=kept, layer=leader.name, batch=batch)

    def _columns(self, layer: PrunableLayer) -> Iterator[Tensor]:
        """Yield what a layer has read in this pass, (..., cols) for each of its calls.

        Raises:
            RelaxPruneError: it was changed since.
        """
        for reading in self._readings.get(layer.name, []):
            if reading.tensor._version != reading.version:
                raise RelaxPruneError(
                    f"the input of layer {layer.name!r} is changed in place after the layer has read it; "
                    f"set inplace=False in the modules beside it, or exclude the layer"
                )
            yield layer.columns(reading.tensor)


class NormCollector(StatisticsCollector):
    """Gathers ‖x‖² of every token that counts, and who shares what; multiplies nothing."""

    def __init__(self, layers: Sequence[PrunableLayer], *, of_decoder: Collection[str] = ()) -> None:
        """Prepare for some layers, as the base class does."""
        super().__init__(layers, multiply=False, of_decoder=of_decoder)
        self._norms: dict[str, list[Tensor]] = defaultdict(list)

    def median(self, group: GramGroup) -> float:
        """Return the lower median of ‖x‖² over a group's tokens that are not zero, infinity where there are none."""
        seen = self._norms[group.layers[0].name]
        norms = torch.cat(seen) if seen else torch.zeros(0)
        norms = norms[norms != 0]
        return float(norms.median()) if norms.numel() else math.inf

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
