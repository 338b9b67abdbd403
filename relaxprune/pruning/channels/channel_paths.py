"""Which layer's outputs a layer's inputs are, channel by channel, found by running the block on random values.

No table of architectures: the outputs of every layer in a block are replaced by random numbers, some output channels
of one layer are changed, and what changes at the inputs of the others tells what depends on what. Where each input
channel of a layer (the consumer) depends on exactly one output channel of another (a producer), the two can be
reordered together; attention weights or an activation in between do no harm if they treat channels alike, which is
checked by giving all channels the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.models.layers import PrunableLayer
from relaxprune.support.forwards import hooked_forwards

NO_PRODUCER = "no layer of its block makes each of its inputs from one output"
NO_GROUPS = "its interchangeable inputs do not fill two or more whole groups"
OTHER_ORDERS = "the layers that make its inputs have their outputs in different orders"
NOT_REACHED = "the largest batch does not reach it"

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Orbit:
    """Channels that may change places.

    Attributes:
        rows: (size,) int64, output channels of the producers.
        columns: (slots, size) int64, input channels of the consumer that are made from them: one slot for each head
            that shares the producer's. Whole N:M groups lie side by side in every slot.
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class ChannelPath:
    """The way from some layers' outputs to one layer's inputs.

    Attributes:
        producers: positions, in the block's layers, of those whose rows are reordered.
        rows: how many output channels each of them has.
        orbits: which channels may change places.
    """

    producers: tuple[int, ...]
    rows: int
    orbits: tuple[Orbit, ...]


def find_paths(layers: Sequence[PrunableLayer], run: Callable[[], object], group: int) -> list[ChannelPath | str]:
    """Find, for every layer of a block, what may be reordered together with its columns.

    Args:
        layers: the block's Linear and Conv1D layers.
        run: puts one batch through the block (or the whole model).
        group: consecutive columns in an N:M group.

    Returns:
        For each layer its path, or the reason why it has none.
    """
    probe = Probe(layers, run)
    sources = find_sources(layers, probe)
    heights = [layer.shape[0] for layer in layers]
    return [_path(consumer, sources[consumer], heights, probe, group) for consumer in range(len(layers))]


class Probe:
    """Runs a block with random numbers for the outputs of its layers, and notes what they are called with.

    Attributes:
        inputs: for each layer the first input of a pass without changes, (tokens, cols); None if it is not called.
    """

    def __init__(self, layers: Sequence[PrunableLayer], run: Callable[[], object]) -> None:
        self._layers = layers
        self._run = run
        self._noise: dict[tuple[int, tuple[int, ...], bool], Tensor] = {}
        self.inputs = self.run({})

    def run(self, changes: Mapping[int, Change]) -> list[Tensor | None]:
        """Return every layer's first input, with the outputs of some layers changed."""
        seen: list[Tensor | None] = [None] * len(self._layers)
        with self._hooked(seen, changes):
            self._run()
        return seen

    def noise(self, index: int, like: Tensor, other: bool = False) -> Tensor:
        """Return a layer's random outputs, always the same ones; ``other`` for a second draw."""
        key = (index, tuple(like.shape), other)
        if key not in self._noise:
            generator = torch.Generator().manual_seed(2 * index + other)
            self._noise[key] = torch.randn(like.shape, generator=generator).to(device=like.device, dtype=like.dtype)
        return self._noise[key]

    @contextmanager
    def _hooked(self, seen: list[Tensor | None], changes: Mapping[int, Change]) -> Iterator[None]:
        """Put a hook on every layer, and take them off again whatever happens."""

        def hook(index: int) -> Any:
            def replace(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                if seen[index] is None and args and isinstance(args[0], Tensor):
                    seen[index] = args[0].detach().reshape(-1, args[0].shape[-1]).clone()
                if not isinstance(output, Tensor):  # a router that is a layer, and puts out scores and choices
                    return output
                values = self.noise(index, output)
                return changes[index](values) if index in changes else values

            return replace

        with hooked_forwards((layer.module, hook(index)) for index, layer in enumerate(self._layers)):
            yield


def find_sources(layers: Sequence[PrunableLayer], probe: Probe) -> list[dict[int, Tensor]]:
    """Return for each layer: producer -> (cols,) int64, the output channel that each input channel is made from."""
    found: list[dict[int, Tensor]] = [{} for _ in layers]
    for producer, layer in enumerate(layers):
        if probe.inputs[producer] is None:
            continue
        for consumer, rows in _consumers(producer, layer.shape[0], probe).items():
            found[consumer][producer] = rows
    return found


def _consumers(producer: int, rows: int, probe: Probe) -> dict[int, Tensor]:
    """Return the layers each of whose inputs is made from exactly one output of a producer, with those outputs.

    The outputs are numbered in binary, and for every bit those with a 0 and those with a 1 are changed in turn: an
    input that is made from one output changes exactly once, and the bits spell the output's number.
    """
    alive = {
        consumer: torch.zeros(inputs.shape[1], dtype=torch.int64)
        for consumer, inputs in enumerate(probe.inputs)
        if inputs is not None and consumer != producer
    }
    numbers = torch.arange(rows)
    for bit in range(max(1, (rows - 1).bit_length())):
        chosen = (numbers >> bit) & 1 == 1
        ones, zeros = (_changed(producer, channels, probe) for channels in (chosen, ~chosen))
        alive = {
            consumer: code + (ones[consumer].to(torch.int64) << bit)
            for consumer, code in alive.items()
            if bool((ones[consumer] != zeros[consumer]).all())
        }
        if not alive:
            break
    return alive


def _changed(producer: int, channels: Tensor, probe: Probe) -> list[Tensor]:
    """Return for each layer (cols,) bool on the CPU: which of its inputs change with some of a producer's outputs."""

    def change(values: Tensor) -> Tensor:
        return torch.where(channels.to(values.device), probe.noise(producer, values, other=True), values)

    seen = probe.run({producer: change})
    return [_differing(before, after) for before, after in zip(probe.inputs, seen, strict=True)]


def _differing(before: Tensor | None, after: Tensor | None) -> Tensor:
    """Return (cols,) bool: the columns in which two inputs differ; all of them if their tokens differ."""
    if before is None or after is None or before.shape != after.shape:
        return torch.ones(0 if before is None else before.shape[1], dtype=torch.bool)
    return (before != after).any(dim=0).cpu()


def _path(
    consumer: int, sources: Mapping[int, Tensor], heights: Sequence[int], probe: Probe, group: int
) -> ChannelPath | str:
    """Return what may be reordered together with a layer's columns, or why nothing may."""
    if probe.inputs[consumer] is None:
        return NOT_REACHED
    if not sources:
        return NO_PRODUCER
    maps = list(sources.values())
    rows = {heights[producer] for producer in sources}
    if len(rows) > 1 or any(not torch.equal(one, maps[0]) for one in maps[1:]):
        return OTHER_ORDERS
    treated = treatments(consumer, sources, probe)
    if not treated:
        return NOT_REACHED
    orbits = [_aligned(orbit, group) for orbit in group_alike(maps[0], treated)]
    usable = tuple(orbit for orbit in orbits if orbit is not None)
    return ChannelPath(tuple(sources), rows.pop(), usable) if usable else NO_GROUPS


def treatments(consumer: int, sources: Mapping[int, Tensor], probe: Probe) -> list[int]:
    """Return for each input channel a number; equal ones become the same values if their sources have the same.

    Channels of one attention head do, those of different heads do not.

    Args:
        consumer: position of the layer.
        sources: producer -> (cols,) int64, the output channel that each input channel is made from.
        probe: runs the block.
    """
    seen = probe.run({producer: partial(_all_alike, rows.unique()) for producer, rows in sources.items()})
    inputs = seen[consumer]
    if inputs is None:
        return []
    columns = inputs.to(torch.float64).T.contiguous()  # (cols, tokens)
    tolerance = rounding_tolerance(inputs.dtype)
    treated = torch.full((columns.shape[0],), -1, dtype=torch.int64, device=columns.device)
    number = 0
    while bool((treated < 0).any()):
        first = int((treated < 0).nonzero()[0])
        distance = (columns - columns[first]).norm(dim=1)
        treated[(treated < 0) & (distance <= tolerance * columns[first].norm())] = number
        number += 1
    return [int(value) for value in treated]


def _all_alike(rows: Tensor, values: Tensor) -> Tensor:
    """Return outputs, (..., channels), some channels of which have the values of the first of them."""
    values, places = values.clone(), rows.to(values.device)
    values[..., places] = values[..., places[:1]]
    return values


def group_alike(rows: Tensor, treated: Sequence[int]) -> list[Orbit]:
    """Gather output channels whose input channels are treated alike, all of them."""
    columns: dict[int, list[tuple[int, int]]] = {}
    for column, (row, treatment) in enumerate(zip(rows.tolist(), treated, strict=True)):
        columns.setdefault(row, []).append((treatment, column))
    alike: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for row, entries in columns.items():  # in the order of the columns
        entries.sort()
        key = tuple(treatment for treatment, _ in entries)
        alike.setdefault(key, []).append((row, [column for _, column in entries]))
    return [
        Orbit(torch.tensor([row for row, _ in members]), torch.tensor([places for _, places in members]).T.contiguous())
        for members in alike.values()
    ]


def _aligned(orbit: Orbit, group: int) -> Orbit | None:
    """Put whole groups side by side; None if there are fewer than two, or if slots are grouped differently."""
    numbers = orbit.columns // group  # (slots, size)
    order = numbers[0].argsort(stable=True)
    if numbers.shape[1] % group or numbers.shape[1] < 2 * group:
        return None
    by_group = numbers[:, order].view(numbers.shape[0], -1, group)
    whole = bool((by_group == by_group[..., :1]).all())
    distinct = all(len(set(slot[:, 0].tolist())) == slot.shape[0] for slot in by_group)
    return Orbit(orbit.rows[order], orbit.columns[:, order]) if whole and distinct else None


def rounding_tolerance(dtype: torch.dtype) -> float:
    """Return the relative difference that rounding may explain: 7e-5 for float32, 0.05 for bfloat16."""
    return float(torch.finfo(dtype).eps ** 0.6)
