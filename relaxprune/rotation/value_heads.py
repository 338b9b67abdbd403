"""Which outputs of a layer are the values that attention mixes, and which inputs of another they become, head by head.

Found as orders of channels are (``channel_paths``), and told from other paths by two more facts: outputs times -2 give
inputs times -2, and heads rotated at random leave what the block puts out as it is. With a single token attention has
nothing to choose, so that values are found in a layer that also makes queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from relaxprune.models.layers import PrunableLayer, find_layers
from relaxprune.pruning.channels.channel_paths import Probe, find_sources, group_alike, treatments

from .block_copy import BlockCopy, close
from .norms import random_rotation
from .places import write

NO_VALUES = "no layer of it takes what another puts out mixed over tokens only"
UNEQUAL = "it does not compute the same with its heads rotated"


@dataclass(frozen=True, eq=False)
class ValueHead:
    """Channels that attention treats alike.

    Attributes:
        rows: (size,) int64, outputs of the layer that makes values.
        columns: (slots, size) int64, inputs of the layer that reads them mixed: one slot for each query head.
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class ValuePath:
    """The heads between two layers of a block; names are those in the block.

    Attributes:
        producer: the layer whose rows turn.
        consumer: the layer whose columns turn.
        heads: each with a rotation of its own.
    """

    producer: str
    consumer: str
    heads: tuple[ValueHead, ...]

    def turned(self, weight: Tensor, rotations: list[Tensor]) -> Tensor:
        """Return the producer's (rows, cols) weight, or its (rows,) bias, with every head rotated."""
        new = weight.clone()
        for head, rotation in zip(self.heads, rotations, strict=True):
            new[head.rows] = rotation.T @ weight[head.rows]
        return new

    def turned_columns(self, weight: Tensor, rotations: list[Tensor]) -> Tensor:
        """Return the consumer's (rows, cols) weight with every head rotated."""
        new = weight.clone()
        for head, rotation in zip(self.heads, rotations, strict=True):
            for slot in head.columns:
                new[:, slot] = weight[:, slot] @ rotation
        return new


def find_value_heads(copy: BlockCopy, single: BlockCopy) -> tuple[ValuePath, ...] | str:
    """Find the value heads of a block, and prove that they may be rotated.

    Args:
        copy: of the block, called with several tokens.
        single: of the same block, called with one.

    Returns:
        The paths, or why there are none, as a clause.
    """
    found = []
    layers = _layers(copy)
    sources = find_sources(_layers(single), Probe(_layers(single), single.run))
    probe = Probe(layers, copy.run)
    for consumer, producers in enumerate(sources):
        if len(producers) == 1:
            producer = next(iter(producers))
            path = _path(layers, producer, consumer, producers[producer], probe)
            found += [] if path is None else [path]
    if not found:
        return NO_VALUES
    return tuple(found) if _proven(copy, found) else UNEQUAL


def _layers(copy: BlockCopy) -> list[PrunableLayer]:
    """Return the layers of a copy whose channels can be told apart."""
    return [layer for layer in find_layers(copy.block)[0] if layer.kind in ("Linear", "Conv1D")]


def _path(layers: list[PrunableLayer], producer: int, consumer: int, rows: Tensor, probe: Probe) -> ValuePath | None:
    """Return the heads between two layers; None if what lies between is not attention alone."""
    if not _linear(producer, consumer, rows.unique(), probe):
        return None
    treated = treatments(consumer, {producer: rows}, probe)
    heads = [ValueHead(orbit.rows, orbit.columns) for orbit in group_alike(rows, treated) if len(orbit.rows) > 1]
    if not heads:
        return None
    return ValuePath(layers[producer].name, layers[consumer].name, tuple(heads))


def _linear(producer: int, consumer: int, rows: Tensor, probe: Probe) -> bool:
    """Return whether some outputs times -2 make a layer's inputs those times -2."""

    def change(values: Tensor) -> Tensor:
        values, places = values.clone(), rows.to(values.device)
        values[..., places] = values[..., places] * -2
        return values

    before, after = probe.inputs[consumer], probe.run({producer: change})[consumer]
    return before is not None and after is not None and close(after, before * -2)


def _proven(copy: BlockCopy, paths: list[ValuePath]) -> bool:
    """Rotate the heads of a copy at random, and return whether it puts out what it did; the copy stays rotated."""
    before = copy.run()
    layers = {layer.name: layer for layer in _layers(copy)}
    for path in paths:
        producer, consumer = layers[path.producer], layers[path.consumer]
        device = producer.weight.device
        turns = [random_rotation(len(head.rows), seed).to(device) for seed, head in enumerate(path.heads)]
        write(producer.matrix(), path.turned(producer.matrix().clone(), turns))
        write(consumer.matrix(), path.turned_columns(consumer.matrix().clone(), turns))
        bias = getattr(producer.module, "bias", None)
        if bias is not None:
            write(bias, path.turned(bias.detach().clone(), turns))
    return close(copy.run(), before)
