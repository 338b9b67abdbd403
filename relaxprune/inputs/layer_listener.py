"""Hooks that record what layers read: which layers share a tensor, when each is called, and how often."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .experts import ExpertListener
from .gram_accumulator import GramAccumulator
from .portion import Portion
from .streams import ONE_STREAM, Streams


@dataclass(frozen=True, eq=False)
class GramGroup:
    """Layers that read the same tensors in every batch so far.

    Attributes:
        layers: at least one, in the order of the model.
        accumulator: their Gram; None when no batch reached them, or nothing was multiplied.
    """

    layers: tuple[PrunableLayer, ...]
    accumulator: GramAccumulator | None


@dataclass(frozen=True)
class Reading:
    """One call of a layer.

    Attributes:
        tensor: its input.
        version: shows whether that was changed since.
        windows: of an expert where tokens are marked, the window of each token, (tokens,); else None.
    """

    tensor: Tensor
    version: int
    windows: Tensor | None = None

    def key(self) -> Hashable:
        """Identify the tensor within one forward pass, during which it is held alive."""
        tensor = self.tensor
        place: Hashable = tensor.data_ptr()
        if tensor.is_meta:  # it lies nowhere, but in an object of its own
            place = (tensor.untyped_storage()._cdata, tensor.storage_offset())
        return (place, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, self.version)


class LayerListener:
    """Records what some layers read in one forward pass at a time; the base class multiplies nothing.

    Layers start in one group, and a group splits whenever its layers read different tensors. Inputs are held until the
    pass ends, when subclasses use them (``_count``).

    Attributes:
        groups: the partition of the layers by what they have read so far.
        calls: layer name -> the most calls in one pass.
        order: names of the layers in the order of their first call.
    """

    def __init__(self, layers: Sequence[PrunableLayer], *, streams: Streams = ONE_STREAM) -> None:
        """Prepare for some layers.

        Args:
            layers: the layers to listen to.
            streams: which tokens, and so which padding, each layer reads.
        """
        self.groups: list[GramGroup] = [GramGroup(tuple(layers), None)] if layers else []
        self.calls: dict[str, int] = {layer.name: 0 for layer in layers}
        self.order: list[str] = []
        self._layers = tuple(layers)
        self._streams = streams
        self._readings: dict[str, list[Reading]] = defaultdict(list)

    @contextmanager
    def listening(self, batch: int, kept: Tensor | None, decoder_kept: Tensor | None = None) -> Iterator[None]:
        """Listen to one forward pass, then count it; hooks are removed afterwards, even after an exception.

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

    def in_order(self) -> tuple[list[tuple[PrunableLayer, ...]], tuple[PrunableLayer, ...]]:
        """Return the groups that were reached, in the order of their first calls, and the layers that were not."""
        place = {name: number for number, name in enumerate(self.order)}
        reached = [group.layers for group in self.groups if group.layers[0].name in place]
        reached.sort(key=lambda members: min(place[layer.name] for layer in members))
        return reached, tuple(layer for layer in self._layers if layer.name not in place)

    def unite(self, portion: Portion) -> None:
        """Take in what the listeners of all ranks have heard, each of its portion of the batches.

        Layers share a group if they do on all ranks.
        """
        if portion.ranks.alone:
            return
        here = [self._told(group) if portion.counted else None for group in self.groups]
        names = [[layer.name for layer in group.layers] for group in self.groups]
        told = portion.ranks.exchange({"calls": self.calls, "groups": names, "counts": here})
        self.calls = {name: max(rank["calls"][name] for rank in told) for name in self.calls}
        own = {layer.name: group for group in self.groups for layer in group.layers}
        layers = {layer.name: layer for layer in self._layers}
        self.groups = []
        for members in _common([rank["groups"] for rank in told]):
            counts = [_of(members[0], rank) for rank in told]
            united = tuple(layers[name] for name in members)
            self.groups.append(self._united(united, own[members[0]], counts, portion))

    def _told(self, group: GramGroup) -> Any:
        """Return what the other ranks have to know about a group, None for nothing."""
        return None

    def _united(
        self, layers: tuple[PrunableLayer, ...], own: GramGroup, told: Sequence[Any], portion: Portion
    ) -> GramGroup:
        """Return layers that share a group on all ranks, with what these know of it.

        Args:
            layers: the layers.
            own: their group on this rank, which may have been others' too.
            told: what every rank tells about its own group of theirs, in the order of the ranks.
            portion: this rank's.
        """
        return GramGroup(layers, None)

    def _hook(self, layer: PrunableLayer) -> Any:
        """Return the hook that notes what one layer is called with."""

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            self._note(layer, tensor)

        return note

    def _note(self, layer: PrunableLayer, tensor: Tensor, windows: Tensor | None = None) -> None:
        """Note one call of a layer."""
        if not self.calls[layer.name] and not self._readings[layer.name]:
            self.order.append(layer.name)
        self._readings[layer.name].append(Reading(tensor.detach(), tensor._version, windows))

    def _hear(self, kept: Tensor | None, layer: PrunableLayer, inputs: Tensor, rows: Tensor | None) -> None:
        """Note what an expert reads; tokens that are padding go first, for it reads them in an order of its own."""
        windows = None
        if kept is not None:
            if rows is None:
                raise RelaxPruneError(
                    f"which tokens expert {layer.name!r} reads is not known, so that padding and kinds of text cannot "
                    "be told; give batches without padding and of one kind, or exclude this layer"
                )
            real = kept.reshape(-1).to(rows.device)[rows]
            inputs, windows = inputs[real], rows[real] // kept.shape[1]
        if len(inputs):
            self._note(layer, inputs, windows)

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
            self._count(group, batch, self._streams.padding(group.layers[0].name, kept, decoder_kept))
            for group in groups
        ]

    def _count(self, group: GramGroup, batch: int, kept: Tensor | None) -> GramGroup:
        """Return a group with this pass's readings of its first layer, which are those of all its layers, counted."""
        return group

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


def _common(partitions: Sequence[Sequence[Sequence[str]]]) -> list[list[str]]:
    """Return the coarsest partition that all of several refine to, split in their order as groups split one by one."""
    parts = [list(group) for group in partitions[0]]
    for partition in partitions[1:]:
        group_of = {name: number for number, group in enumerate(partition) for name in group}
        split: list[list[str]] = []
        for part in parts:
            pieces: dict[int, list[str]] = defaultdict(list)
            for name in part:
                pieces[group_of[name]].append(name)
            split += pieces.values()
        parts = split
    return parts


def _of(name: str, told: Mapping[str, Any]) -> Any:
    """Return what a rank tells about the group that a layer is in."""
    return next(counts for names, counts in zip(told["groups"], told["counts"], strict=True) if name in names)
