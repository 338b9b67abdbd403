"""Batches: reading them, and running a model on them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from relaxprune.models.blocks import language_model
from relaxprune.models.forward import model_device
from relaxprune.models.token_limits import check_tokens
from relaxprune.problems.errors import RelaxPruneError

from .padding import guarded, marked_padding
from .tree import flatten, map_tree, rebuild

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Batch:
    """One forward pass of the model.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        kept: (batch, tokens) bool, False for padding; None when there is none.
        decoder_kept: the same for the decoder's tokens of an encoder-decoder model.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    kept: Tensor | None = None
    decoder_kept: Tensor | None = None


def read_batches(batches: Iterable[Any]) -> list[Batch]:
    """Read all batches, once.

    Args:
        batches: an iterable (generators too) of tensors, which become the model's first argument, or of mappings,
            which become its keyword arguments. An integer tensor of one dimension is one window of tokens. A
            2-D ``attention_mask``, perhaps in a mapping inside, marks padding with 0, and a ``decoder_attention_mask``
            that of a decoder of its own.

    Raises:
        RelaxPruneError: no batch, a batch of another type, a mask that says padding in another way, or only padding.
    """
    rows = isinstance(batches, Tensor) and (batches.dim() != 2 or batches.is_floating_point())  # not token windows
    if rows or isinstance(batches, (str, bytes, Mapping)) or not isinstance(batches, Iterable):
        raise RelaxPruneError(f"batches must be an iterable of tensors or mappings, got one {type(batches).__name__}")
    read = [_read_batch(batch, index) for index, batch in enumerate(batches)]
    if not read:
        raise RelaxPruneError("batches must hold at least one batch, got an empty iterable")
    if all(batch.kept is not None and not bool(batch.kept.any()) for batch in read):
        raise RelaxPruneError("batches must hold tokens that count, got an attention_mask that is 0 everywhere")
    return read


def _read_batch(batch: Any, index: int) -> Batch:
    """Return a batch as arguments and a padding mask."""
    if isinstance(batch, Tensor):
        batch = _usable(batch)
        window = batch.dim() == 1 and not batch.is_floating_point()
        return Batch((batch.unsqueeze(0) if window else batch,), {})
    if not isinstance(batch, Mapping):
        raise RelaxPruneError(f"batches must hold tensors or mappings, got a {type(batch).__name__} at index {index}")
    kwargs = _usable({str(key): value for key, value in batch.items() if key != "use_cache"})
    return Batch((), kwargs, *marked_padding(kwargs, index))


def _usable(tree: Any) -> Any:
    """Return a tree whose tensors may be used where there are gradients: copies of those of inference mode."""
    with torch.inference_mode(False):
        return map_tree(tree, Tensor, lambda leaf: leaf.clone() if leaf.is_inference() else leaf)


def split_windows(batch: Batch) -> list[Batch]:
    """Return a batch's windows one by one, or the batch itself where it cannot be told what belongs to which window.

    It can be for token ids of shape (windows, length), and for a mapping whose tensors are all of two dimensions and as
    many windows. Other tensors may have windows in any dimension.
    """
    tensors, skeleton = flatten((batch.args, batch.kwargs))
    counts = {len(tensor) for tensor in tensors if tensor.dim() == 2}
    floats = any(isinstance(value, Tensor) and value.is_floating_point() for value in batch.args)
    if len(counts) != 1 or counts == {0} or floats or any(tensor.dim() != 2 for tensor in tensors):
        return [batch]

    def window(index: int) -> Batch:
        part = slice(index, index + 1)
        args, kwargs = rebuild(skeleton, [tensor[part] for tensor in tensors])
        marks = [None if kept is None else kept[part] for kept in (batch.kept, batch.decoder_kept)]
        return Batch(args, kwargs, *marks)

    return [window(index) for index in range(counts.pop())]


def count_windows(batches: Iterable[Batch]) -> int:
    """Return how many windows some batches have; one that cannot be split counts as one."""
    return sum(len(split_windows(batch)) for batch in batches)


def check_fit(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Refuse token ids that a language model cannot read, before anything is done with them.

    Raises:
        RelaxPruneError: windows longer than its positions, or ids outside its vocabulary.
    """
    reader = language_model(model)
    if reader is None or not hasattr(reader, "config"):
        return
    for batch in batches:
        ids = token_ids(batch, "input_ids", *batch.args[:1])
        if ids is not None and ids.numel() and ids.dtype != torch.bool:
            check_tokens(cast("PreTrainedModel", reader), ids)


def without_first(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """Mark the first real tokens of every window like padding: the model reads them, but they do not count.

    Args:
        batches: of token ids, (windows, length).
        tokens: how many to leave out of each window.

    Raises:
        RelaxPruneError: a batch without token ids, or whose windows are not longer than that.
    """
    if tokens == 0:
        return list(batches)
    return [_without_first(batch, tokens, index) for index, batch in enumerate(batches)]


def window_count(batch: Batch) -> int:
    """Return how many windows a batch has: the length of its token ids, or of its first tensor."""
    ids = token_ids(batch, "input_ids", *batch.args[:1])
    tensors = [ids] if ids is not None else flatten((batch.args, batch.kwargs))[0]
    return len(tensors[0]) if tensors and tensors[0].dim() else 1


def with_marks(batch: Batch, index: int, reason: str) -> Batch:
    """Return a batch that says of every token, and of those of its decoder, whether it counts.

    Args:
        batch: of token ids, (windows, length).
        index: of the batch, for messages.
        reason: why that is needed, for messages.

    Raises:
        RelaxPruneError: a batch without token ids.
    """
    ids = token_ids(batch, "input_ids", *batch.args[:1])
    if ids is None:
        raise RelaxPruneError(
            f"{reason}, for which batches must hold token ids of shape (windows, length), got none in batch {index}"
        )
    labels = token_ids(batch, "labels")
    decoder = token_ids(batch, "decoder_input_ids")
    return replace(
        batch,
        kept=_all_of(ids) if batch.kept is None else batch.kept,
        decoder_kept=_all_of(labels if decoder is None else decoder)
        if batch.decoder_kept is None
        else batch.decoder_kept,
    )


def _all_of(ids: Tensor | None) -> Tensor | None:
    """Return that all of some (windows, length) ids count, None for none."""
    return None if ids is None else torch.ones(ids.shape, dtype=torch.bool, device=ids.device)


def _without_first(batch: Batch, tokens: int, index: int) -> Batch:
    """Mark the first real tokens of one batch, and those of its decoder."""
    marked = with_marks(batch, index, f"skip_tokens is {tokens}")
    return replace(
        marked,
        kept=_after(marked.kept, tokens, index),
        decoder_kept=_after(marked.decoder_kept, tokens, index),
    )


def _after(kept: Tensor | None, tokens: int, index: int) -> Tensor | None:
    """Return which (windows, length) tokens count that did, less the first ones of every window."""
    if kept is None:
        return None
    kept = kept & (kept.cumsum(dim=1) > tokens)
    if not bool(kept.any()):
        raise RelaxPruneError(
            f"skip_tokens must leave tokens to count, got {tokens} with windows of {kept.shape[1]} in batch {index}"
        )
    return kept


def token_ids(batch: Batch, name: str, *others: Any) -> Tensor | None:
    """Return a batch's (windows, length) ids of a name, or the first of the others that is one."""
    for value in (batch.kwargs.get(name), *others):
        if isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point():
            return value
    return None


def run_model(model: nn.Module, batch: Batch) -> Any:
    """Run the model on one batch, on the model's device and without a key-value cache."""
    device = model_device(model)
    args, kwargs = map_tree((batch.args, batch.kwargs), Tensor, lambda leaf: leaf.to(device))
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs["use_cache"] = False
    with guarded(model, (args, kwargs), batch.kept):
        return model(*args, **kwargs)
