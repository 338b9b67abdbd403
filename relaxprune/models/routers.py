"""Finding the routers of mixtures of experts: the layers whose outputs choose experts, and weigh them.

A router has few weights, and a mistake in it sends a token to other experts: no reconstruction error of its output says
what that costs. Families write it in many ways; what they have in common is where it lies and what it is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from .layer_kinds import ROUTER_CLASS, layer_kind

_NAME = re.compile(r"gate|\w+_gate|gating|wg|router\w*|\w+_router|classifier|switch", re.IGNORECASE)


def find_routers(model: nn.Module) -> set[nn.Module]:
    """Return the linear layers that route tokens to experts.

    Either a class of their own or above them is called a router; or they lie beside experts, outside of these, are
    called gate or router (or lie in what is), and have one output for each expert, or a single one, which weighs the
    shared expert.
    """
    named = {part for part in model.modules() if ROUTER_CLASS.search(type(part).__name__)}
    routers = {layer for part in named for layer in part.modules()}
    for place in model.modules():
        for experts, count in _experts(place):
            inside = set(experts.modules())
            for name, layer in place.named_modules():
                called = any(_NAME.fullmatch(word) for word in name.split("."))
                if called and layer not in inside and _outputs(layer) in (1, count):
                    routers.add(layer)
    return {layer for layer in routers if layer_kind(layer) is not None}


def _experts(place: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Yield the children of a module that hold experts, with the number of experts."""
    for name, part in place.named_children():
        if "expert" not in name.lower() and "expert" not in type(part).__name__.lower():
            continue
        stacked = {len(parameter) for parameter in part.parameters(recurse=False) if parameter.dim() == 3}
        listed = {len(part)} if isinstance(part, (nn.ModuleList, nn.ModuleDict)) and len(part) else set()
        for count in stacked | listed:
            yield part, count


def _outputs(layer: nn.Module) -> int | None:
    """Return the number of a linear layer's outputs."""
    weight = getattr(layer, "weight", None)
    kind = layer_kind(layer)
    if kind is None or weight is None:
        return None
    return int(weight.shape[1] if kind == "Conv1D" else weight.shape[0])
