"""Padding as a batch marks it, and as a model makes or reads it in its forward pass.

One convention is read: an ``attention_mask`` of shape (batch, tokens), 1 for tokens and 0 for padding. All others are
refused, for a mask that is read the wrong way around counts the padding and leaves out the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.problems.errors import RelaxPruneError

from .tree import flatten

_COMPANIONS = {"attention_mask": "input_ids", "decoder_attention_mask": "decoder_input_ids"}
# Masks that mark padding in another convention, or of tokens that no other argument tells.
_OTHERS = re.compile(r".*pad(ding)?_mask|(input|token|tokens|sequence|seq|pixel)?_?mask|(?!global_).*attention_mask")
_RIGHT = "relaxprune reads an attention_mask of shape (batch, tokens), 1 for tokens and 0 for padding"
_PADDINGS = ("key_padding_mask", "src_key_padding_mask", "tgt_key_padding_mask", "memory_key_padding_mask")
_PLACES = {nn.MultiheadAttention: {3: "key_padding_mask"}, nn.TransformerEncoderLayer: {2: "src_key_padding_mask"}}


def marked_padding(kwargs: Mapping[str, Any], index: int) -> tuple[Tensor | None, Tensor | None]:
    """Return where a batch's tokens are real, and where its decoder's are.

    Args:
        kwargs: the batch; mappings inside it are searched too.
        index: of the batch, for messages.

    Returns:
        (batch, tokens) bool each, False for padding; None where no token is padding.

    Raises:
        RelaxPruneError: a mask in another convention, of another shape than the tokens beside it, or two of one name.
    """
    found: dict[str, Tensor | None] = {}
    for name, value, beside in _masks(kwargs):
        if name not in _COMPANIONS:
            _refuse_other_masks(name, value, index)
        elif name in found:
            raise RelaxPruneError(f"batches must hold one {name}, got two in batch {index}")
        elif value is not None:
            found[name] = _kept(name, value, beside.get(_COMPANIONS[name]), index)
    return found.get("attention_mask"), found.get("decoder_attention_mask")


def _masks(kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield the name and value of every argument that is called a mask, and the mapping that it lies in."""
    for key, value in kwargs.items():
        if isinstance(value, Mapping):
            yield from _masks(value)
        elif str(key).endswith("mask"):
            yield str(key), value, kwargs


def _kept(name: str, mask: Any, tokens: Any, index: int) -> Tensor | None:
    """Return where the tokens of a mask are real, None where none is padding."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise RelaxPruneError(f"{name} must have the shape (batch, tokens), got {shape} in batch {index}")
    kept = mask != 0
    if not bool((mask.eq(0) | mask.eq(1)).all()):
        additive = mask.is_floating_point() and bool((mask <= 0).all())
        kind = "an additive one, 0 for tokens" if additive else "other numbers"
        raise RelaxPruneError(f"{name} must hold 1 for tokens and 0 for padding, got {kind} in batch {index}")
    if isinstance(tokens, Tensor) and tokens.dim() == 2 and tokens.shape != mask.shape:
        raise RelaxPruneError(
            f"{name} must have the shape of {_COMPANIONS[name]}, {tuple(tokens.shape)}, got {tuple(mask.shape)} in "
            f"batch {index}"
        )
    return None if bool(kept.all()) else kept


def _refuse_other_masks(name: str, mask: Any, index: int) -> None:
    """Refuse a mask that marks padding in another way."""
    if not isinstance(mask, Tensor) or mask.dim() < 2 or not _OTHERS.fullmatch(name):
        return
    if bool((mask != mask.flatten()[0]).any()):
        raise RelaxPruneError(f"{_RIGHT}; {name} in batch {index} says it in another way: give batches without padding")


@contextmanager
def guarded(model: nn.Module, arguments: Any, kept: Tensor | None) -> Iterator[None]:
    """Watch one forward pass for padding that the batch does not mark.

    Args:
        model: the model.
        arguments: all that it is called with.
        kept: what the batch marks, (batch, tokens) bool, or None.

    Raises:
        RelaxPruneError: in the pass, where the model itself pads its tokens, or tells torch's attention other padding.
    """
    given = [tensor for tensor in flatten(arguments)[0] if tensor.dim() == 2 and not tensor.is_floating_point()]
    config = getattr(model, "config", None)

    def embed(module: nn.Module, args: tuple[Any, ...]) -> None:
        fillers = {getattr(module, "padding_idx", None), getattr(config, "pad_token_id", None)}
        _refuse_padded(args[0] if args else None, given, fillers)

    def attend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        places = next((names for kind, names in _PLACES.items() if isinstance(module, kind)), {})
        named = {**{name: args[place] for place, name in places.items() if place < len(args)}, **kwargs}
        for name in _PADDINGS:
            _refuse_contrary(name, named.get(name), kept)

    handles = []
    try:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                handles.append(module.register_forward_pre_hook(embed))
            elif isinstance(module, tuple(_PLACES)):
                handles.append(module.register_forward_pre_hook(attend, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_padded(ids: Any, given: list[Tensor], fillers: set[Any]) -> None:
    """Refuse ids that are some of the batch's with filling behind them."""
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return
    for tokens in given:
        length = tokens.shape[1]
        if len(ids) != len(tokens) or not length < ids.shape[1] or not torch.equal(ids[:, :length], tokens.to(ids)):
            continue
        behind = ids[:, length:]
        if int(behind.flatten()[0]) in fillers and bool((behind == behind.flatten()[0]).all()):
            raise RelaxPruneError(
                f"model must read windows as they are, got one that pads {length} tokens to {ids.shape[1]} in its "
                f"forward pass, so that padding would count: give windows of {ids.shape[1]} tokens"
            )


def _refuse_contrary(name: str, mask: Any, kept: Tensor | None) -> None:
    """Refuse padding, as torch's attention is told, that is not what the batch marks."""
    if not isinstance(mask, Tensor) or (kept is not None and mask.shape != kept.shape):
        return
    padding = mask if mask.dtype == torch.bool else mask < 0
    wrong = bool(padding.any()) if kept is None else not torch.equal(padding, ~kept.to(padding.device))
    if wrong:
        raise RelaxPruneError(f"{_RIGHT}; the model's {name} marks other positions: give batches without padding")
