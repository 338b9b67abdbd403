"""The bases of a model's residual stream, and what turns with them outside of the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.models.blocks import find_blocks, output_heads
from relaxprune.models.layers import find_layers

from .ends import StreamEnds
from .norms import gain_of
from .places import Turn, turn_rows
from .rotation import RotateOptions
from .structure import Structure


@dataclass(frozen=True, eq=False)
class Bases:
    """The bases of the residual stream.

    Attributes:
        of_blocks: for each block R, (width, width) float64, where hidden states x become x R; None for all that stay.
            Blocks that share a rotation have the same tensor.
        ratio: what the learner lowered, over what it was; None if the stream stays.
    """

    of_blocks: tuple[Tensor | None, ...]
    ratio: float | None

    def changes(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return block -> what hidden states are multiplied by on their way in, where the basis changes."""
        pairs = zip(self.of_blocks, self.of_blocks[1:], names[1:], strict=False)
        return {
            name: before.T @ after
            for before, after, name in pairs
            if before is not None and after is not None and before is not after
        }


def turn_ends(model: nn.Module, ends: StreamEnds, bases: Bases) -> int:
    """Rotate embeddings and the output head, untied if it was tied; return the bytes that this takes more."""
    head = model.get_submodule(ends.head.module)
    norm = None if ends.norm is None else model.get_submodule(ends.norm.module)
    gain = None if norm is None or ends.norm is None else gain_of(norm, ends.norm.unit)
    old = ends.head.parameter(model)
    extra = 0
    if ends.tied:
        head.weight = nn.Parameter(torch.empty_like(old), requires_grad=old.requires_grad)
        _untie(model)
        extra = old.numel() * old.element_size()
    turn_rows(old.detach(), ends.head.parameter(model).detach(), Turn(gain=gain, cols=bases.of_blocks[-1]))
    for name in ends.embeddings:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        turn_rows(weight.detach(), weight.detach(), Turn(cols=bases.of_blocks[0]))
    if norm is not None and ends.norm is not None:
        for parameter in norm.parameters():
            parameter.data.fill_(ends.norm.unit)
    return extra


def _untie(model: nn.Module) -> None:
    """Let a model, and what is loaded from it, have a head of its own."""
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    for part in model.modules():
        if callable(tie := getattr(part, "tie_weights", None)):
            tie(recompute_mapping=True)


def rotated_bytes(model: nn.Module, options: RotateOptions) -> int:
    """Return the most that the parameters of a model take once it is rotated."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    heads = output_heads(model)
    weight = getattr(heads[0], "weight", None) if heads else None
    if options.rotate == "heads" or not isinstance(weight, Tensor):
        return size
    if sum(parameter is weight for _, parameter in model.named_parameters(remove_duplicate=False)) > 1:
        size += weight.numel() * weight.element_size()
    if options.rotate == "blocks":
        bases = -(-len(find_blocks(model, find_layers(model)[0]).modules) // options.every)
        size += max(0, bases - 1) * weight.shape[-1] ** 2 * weight.element_size()
    return size


def change_share(structure: Structure, changes: dict[str, Tensor]) -> float:
    """Return the multiplications of changes between blocks, as a share of those of the blocks' matrices."""
    own = sum(parameter.numel() for block in structure.blocks.modules for parameter in block.parameters())
    added = sum(change.numel() for change in changes.values())
    return added / max(1, own - added)
