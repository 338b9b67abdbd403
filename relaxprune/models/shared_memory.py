"""Which tensors of a model share memory: parameters tied to one another, windows of one flat buffer, and aliases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relaxprune.residency.homes import is_away

from .layer_kinds import is_plain


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a tensor lies: the bytes from ``start`` up to ``end`` of a device, perhaps not all of them."""

    name: str
    tensor: Tensor
    start: int
    end: int


def shared_memory(model: nn.Module) -> dict[str, list[str]]:
    """Return for each of a model's tensors that shares memory with others their names.

    Looks at parameters, buffers and tensors that are plain attributes of modules. A tensor that lies in itself (an
    expanded one, whose entries share memory with one another) is among its own.
    """
    by_device: dict[torch.device, list[_Place]] = defaultdict(list)
    for name, tensor in _tensors(model):
        if is_plain(tensor) and tensor.device.type != "meta" and tensor.numel():
            by_device[tensor.device].append(_place(name, tensor))
    shared: dict[str, list[str]] = defaultdict(list)
    for places in by_device.values():
        for one, other in _meeting(places):
            shared[one.name].append(other.name)
            shared[other.name].append(one.name)
        for place in places:
            if not is_away(place.tensor) and overlaps_itself(place.tensor):
                shared[place.name].append(place.name)
    return dict(shared)


def overlaps_itself(tensor: Tensor) -> bool:
    """Return whether entries of a strided tensor share memory with one another."""
    if tensor.is_contiguous() or tensor.numel() < 2:
        return False
    if any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
        return True
    return int(_taken(tensor, 0, _extent(tensor)).sum()) < tensor.numel()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that a module of the model holds by name; those of one module under one name once."""
    for name, module in model.named_modules():
        held = {**module._parameters, **module._buffers, **vars(module)}
        for local, tensor in held.items():
            if isinstance(tensor, Tensor) and not is_lazy(tensor):
                yield f"{name}.{local}" if name else local, tensor


def _place(name: str, tensor: Tensor) -> _Place:
    """Return where a tensor lies."""
    start = tensor.data_ptr()
    return _Place(name, tensor, start, start + _extent(tensor) * tensor.element_size())


def _extent(tensor: Tensor) -> int:
    """Return how many entries there are from the first to the last in memory."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _meeting(places: list[_Place]) -> Iterator[tuple[_Place, _Place]]:
    """Yield every two tensors that have a byte in common."""
    open_places: list[_Place] = []
    for place in sorted(places, key=lambda place: place.start):
        open_places = [earlier for earlier in open_places if earlier.end > place.start]
        for earlier in open_places:
            if _have_common_entries(earlier, place):
                yield earlier, place
        open_places.append(place)


def _have_common_entries(one: _Place, other: _Place) -> bool:
    """Return whether two tensors whose spans meet have an entry in common: columns of one matrix need not."""
    size = one.tensor.element_size()
    if one.tensor.is_contiguous() and other.tensor.is_contiguous():
        return True
    if other.tensor.element_size() != size or (other.start - one.start) % size:
        return True  # views of one memory in two dtypes
    length = (max(one.end, other.end) - one.start) // size
    first = _taken(one.tensor, 0, length)
    second = _taken(other.tensor, (other.start - one.start) // size, length)
    return bool((first & second).any())


def _taken(tensor: Tensor, offset: int, length: int) -> Tensor:
    """Return which of ``length`` entries a tensor takes that begins at ``offset``: (length,) bool."""
    taken = torch.zeros(length, dtype=torch.bool)
    taken.as_strided(tuple(tensor.shape), tensor.stride(), offset).fill_(True)
    return taken
