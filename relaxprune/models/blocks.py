"""Finding the blocks of a model by structure, and the layers outside of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .layers import PrunableLayer


@dataclass(frozen=True, eq=False)
class BlockList:
    """The blocks that are pruned one after another.

    Attributes:
        name: name of the ``nn.ModuleList``; "" when the model has none and is pruned layer by layer.
        names: names of the blocks.
        modules: the blocks, in the order of the list.
        others: names of the model's other lists of blocks, such as those of an encoder or of a vision tower.
    """

    name: str
    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    others: tuple[str, ...] = ()

    def other_of(self, layer: PrunableLayer) -> str | None:
        """Return the other list of blocks that a layer lies in, None for none of them."""
        return next((name for name in self.others if _contains(name, layer.name)), None)

    def index_of(self, layer: PrunableLayer) -> int | None:
        """Return the block that a layer lies in, None for a layer outside of the blocks."""
        return next((i for i, name in enumerate(self.names) if f"{layer.name}.".startswith(f"{name}.")), None)

    def places(self, model: nn.Module) -> dict[int, int | None]:
        """Return the block that each parameter of the model lies in, by its ``id``; None for outside, or several."""
        found: dict[int, set[int | None]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            index = next((i for i, block in enumerate(self.names) if name.startswith(f"{block}.")), None)
            found.setdefault(id(parameter), set()).add(index)
        return {key: indices.pop() if len(indices) == 1 else None for key, indices in found.items()}


NO_BLOCKS = BlockList("", (), ())


def find_blocks(model: nn.Module, layers: Sequence[PrunableLayer]) -> BlockList:
    """Choose the list of blocks to prune one after another.

    A candidate is an ``nn.ModuleList`` whose every element has prunable layers, not nested in an element of another
    candidate (experts inside a block are no blocks). Candidates inside the model's decoder (``get_decoder``, which
    transformers models have) go first, so that a vision tower is not taken for the language model; then the one with
    the most prunable weights, then the first.

    Args:
        model: any module.
        layers: all its prunable layers.

    Returns:
        The chosen list, or ``NO_BLOCKS``.
    """
    names = {module: name for name, module in model.named_modules()}
    candidates = _candidates(model, layers)
    if not candidates:
        return NO_BLOCKS
    decoder = _decoder(model)
    inside = [name for name in candidates if decoder is not None and _contains(names.get(decoder, ""), name)]

    def weights(name: str) -> int:
        return sum(layer.stored.numel() for layer in layers if _contains(name, layer.name))

    chosen = max(inside or candidates, key=weights)  # max() keeps the first of equals
    elements = model.get_submodule(chosen).named_children()
    pairs = [(f"{chosen}.{index}" if chosen else index, module) for index, module in elements]
    others = tuple(name for name in candidates if name != chosen)
    return BlockList(chosen, tuple(name for name, _ in pairs), tuple(module for _, module in pairs), others)


def has_two_sides(model: nn.Module) -> bool:
    """Return whether all lists of blocks are the model: an encoder and a decoder, or towers without an output head.

    Where there is a head and no encoder the model is its decoder, and what else it has, a vision tower say, feeds that.
    """
    configs = [getattr(part, "config", None) for part in model.modules()]
    return any(getattr(config, "is_encoder_decoder", False) for config in configs) or not output_heads(model)


def language_model(model: nn.Module, inside: str = "") -> nn.Module | None:
    """Return the outermost part of a model that follows the transformers interface, by which heads are known.

    Args:
        model: the whole: such a model, or one that holds it, such as a value head around it.
        inside: name of a part that it must hold, such as the list of blocks.
    """
    parts: Iterable[tuple[str, nn.Module]] = model.named_modules()
    sides = ("get_input_embeddings", "get_output_embeddings")
    holders = (part for name, part in parts if _contains(name, inside))
    return next((part for part in holders if all(hasattr(part, side) for side in sides)), None)


def output_heads(model: nn.Module) -> list[nn.Module]:
    """Return the modules that turn hidden states into scores for tokens, as any part of the model names them."""
    getters: list[Any] = [getattr(part, "get_output_embeddings", None) for part in model.modules()]
    heads = [getter() for getter in getters if callable(getter)]
    return [head for head in heads if isinstance(head, nn.Module)]


def embedding_shapes(model: nn.Module) -> set[tuple[int, ...]]:
    """Return the shapes of a model's embeddings: a layer of such a shape may be an output head that nothing names."""
    return {tuple(part.weight.shape) for part in model.modules() if isinstance(part, nn.Embedding)}


def _candidates(model: nn.Module, layers: Sequence[PrunableLayer]) -> list[str]:
    """Return the names of the outermost lists whose every element has prunable layers."""
    found: list[str] = []
    for name, module in model.named_modules():  # parents come before their children
        if not isinstance(module, nn.ModuleList) or len(module) == 0 or any(_contains(outer, name) for outer in found):
            continue
        elements = [f"{name}.{index}" if name else index for index, _ in module.named_children()]
        if all(any(_contains(element, layer.name) for layer in layers) for element in elements):
            found.append(name)
    return found


def _contains(outer: str, inner: str) -> bool:
    """Return whether a module name lies inside another (or is the same); "" is the whole model."""
    return not outer or f"{inner}.".startswith(f"{outer}.")


def _decoder(model: nn.Module) -> nn.Module | None:
    """Return what the model itself, or the outermost part of it that does so, calls its decoder."""
    for part in model.modules():
        getter = getattr(part, "get_decoder", None)
        if callable(getter):
            decoder = getter()
            return decoder if isinstance(decoder, nn.Module) else None
    return None
