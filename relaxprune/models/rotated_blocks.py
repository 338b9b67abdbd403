"""Models whose residual stream changes its basis between blocks: how they compute, and how transformers loads them.

Such a checkpoint is of a type of its own, so that transformers refuses it where nobody has said what that means, in
place of loading a model that computes nonsense. ``register_rotated`` says it for one folder; ``load_rotated`` loads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.json_files import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PREFIX = "relaxprune_rotated_"


class BasisChange(nn.Module):
    """Multiplies hidden states, (..., width), by a matrix on their way into a block.

    Attributes:
        weight: (width, width), orthogonal up to rounding.
    """

    def __init__(self, width: int) -> None:
        """Start from the matrix that changes nothing."""
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))

    def forward(self, states: Tensor) -> Tensor:
        """Return the hidden states in the block's basis."""
        return states @ self.weight


@functools.cache
def _turned_class(kind: Any) -> Any:
    """Return a class of blocks that change the basis of what goes in; it has the name of the one it is of."""

    @functools.wraps(kind.forward)
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return kind.forward(self, self.basis(hidden_states), *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__})


def _insert(model: nn.Module, names: Sequence[str], width: int) -> None:
    """Let some blocks change the basis of what goes into them."""
    for name in names:
        block = model.get_submodule(name)
        kind: Any = type(block)
        block.__class__ = _turned_class(kind)
        block.basis = BasisChange(width).to(next(block.parameters()).dtype)  # on the device that a model is made on


@functools.cache
def _classes(base: str) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    """Return the configuration and the model that rotated ones of a type of transformers have, known to ``AutoModel``.

    Raises:
        RelaxPruneError: transformers knows no causal language model of that type.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    if base not in CONFIG_MAPPING or (found := CONFIG_MAPPING[base]) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RelaxPruneError(
            "a model that is rotated block by block must be one of transformers' own causal language models, got "
            f"{base!r}"
        )
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[found]
    config: Any = type(f"Rotated{found.__name__}", (found,), {"model_type": f"{PREFIX}{base}", "__module__": __name__})

    def begin(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        _insert(self, config.rotated_blocks["names"], config.rotated_blocks["width"])

    members = {"config_class": config, "__init__": begin, "__module__": kind.__module__}
    model: Any = type(f"Rotated{kind.__name__}", (kind,), members)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    return config, model


def refuse_other_classes(model: Any) -> None:
    """Refuse a model that could not be loaded again once it is rotated block by block.

    Raises:
        RelaxPruneError: it is of a class of its own.
    """
    base = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if _classes(base)[1].__bases__ != (type(model),):
        raise RelaxPruneError(
            f"a model that is rotated block by block must be the one that AutoModelForCausalLM makes, got a "
            f"{type(model).__name__}"
        )


def changes_bases(model: Any) -> bool:
    """Return whether a model's residual stream changes its basis between blocks, so that it needs ``load_rotated``."""
    return getattr(getattr(model, "config", None), "rotated_blocks", None) is not None


def insert_changes(model: Any, changes: dict[str, Tensor]) -> int:
    """Let the residual stream change its basis before some blocks of a model, in place; return the bytes this takes.

    Args:
        model: a causal language model of transformers, see ``refuse_other_classes``.
        changes: name of a block -> (width, width) float64, what hidden states are multiplied by on their way in.
    """
    config, kind = _classes(model.config.model_type)
    width = len(next(iter(changes.values())))
    _insert(model, list(changes), width)
    model.config.__class__ = config
    model.config.rotated_blocks = {"names": list(changes), "width": width}
    model.__class__ = kind
    total = 0
    for name, change in changes.items():
        weight = model.get_submodule(name).basis.to(change.device).weight
        weight.data.copy_(change)
        total += weight.numel() * weight.element_size()
    return total


def register_rotated(folder: str | Path) -> None:
    """Tell transformers what a model that is rotated block by block is, if a folder holds one.

    Raises:
        RelaxPruneError: transformers does not know what it was made of, or its config does not say where bases change.
    """
    path = Path(folder) / "config.json"
    config = read_json(path) if path.is_file() else {}
    kind = config.get("model_type") if isinstance(config, dict) else None
    if isinstance(kind, str) and kind.startswith(PREFIX):
        stated = config.get("rotated_blocks")
        if not isinstance(stated, dict) or not {"names", "width"} <= stated.keys():
            raise RelaxPruneError(
                f"{str(path)!r} must state the names and the width of rotated_blocks for a model of type {kind!r}, got "
                f"{stated!r}"
            )
        _classes(kind.removeprefix(PREFIX))


def load_rotated(folder: str | Path, **arguments: Any) -> Any:
    """Load a model that is rotated block by block, or any other causal language model, from a folder.

    From then on ``AutoModelForCausalLM.from_pretrained`` loads it as well.

    Args:
        folder: a checkpoint, such as ``relaxprune rotate`` writes.
        arguments: of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        RelaxPruneError: transformers does not know what it was made of.
    """
    from transformers import AutoModelForCausalLM

    register_rotated(folder)
    return AutoModelForCausalLM.from_pretrained(str(folder), **arguments)
