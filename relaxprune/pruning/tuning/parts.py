"""The parts of a block that are tuned one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from relaxprune.models.layers import PrunableLayer


@dataclass(frozen=True, eq=False)
class Part:
    """A block, or a part of it.

    Attributes:
        name: of the part in its block, "" for the whole block.
        module: the part, None for the whole block.
        layers: the layers in it.
    """

    name: str
    module: nn.Module | None
    layers: list[PrunableLayer]


def parts_of(block: nn.Module, name: str, layers: Sequence[PrunableLayer]) -> list[Part]:
    """Return the parts of a block, such as its attention and its MLP: children that hold layers, in the block's order.

    Args:
        block: the block.
        name: its name in the model.
        layers: some of its layers.
    """
    found: dict[str, Part] = {}
    for layer in layers:
        path = layer.name.removeprefix(f"{name}.").split(".")
        depth = 1
        while isinstance(block.get_submodule(".".join(path[:depth])), (nn.ModuleList, nn.ModuleDict)):
            depth += 1  # a list is not called itself
        key = ".".join(path[:depth])
        found.setdefault(key, Part(key, block.get_submodule(key), [])).layers.append(layer)
    places = {inner: place for place, (inner, _) in enumerate(block.named_modules())}
    return sorted(found.values(), key=lambda part: places[part.name])
