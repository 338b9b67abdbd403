"""Which tokens a language model can read: how many, and with which ids; one check for all that reads text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.sentences import first_line

from .forward import evaluating, model_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What configurations call the longest input.
_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_seq_length", "max_sequence_length", "seq_len",
    "seq_length", "context_length", "max_context_length", "n_ctx", "block_size", "model_max_length",
    "max_target_positions",
)  # fmt: skip
# Positions that are a bias of any length, whatever the configuration says of the training's.
_UNBOUNDED = ("bloom",)
# What modules call a table with a row for each position.
_TABLES = (
    "wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed", "positional_embedding",
    "pos_embed", "pos_emb", "wpe_embedding",
)  # fmt: skip


def positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model can read at once, None where nothing says so."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    bias = bool(getattr(config, "alibi", False)) or getattr(config, "model_type", "") in _UNBOUNDED
    stated = [] if bias else [getattr(config, name, None) for name in _LENGTHS]
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    part = decoder if isinstance(decoder, nn.Module) else model
    tables = [
        _rows(module)
        for name, module in part.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES
    ]
    known = [value for value in (*stated, *tables) if isinstance(value, int) and value > 0]
    return min(known, default=None)


def vocabulary(model: PreTrainedModel) -> int | None:
    """Return how many token ids a model has embeddings of, None where it does not say."""
    table = _embedding(model)
    if table is not None:
        return int(table.shape[0])
    stated = getattr(model.config, "vocab_size", None)
    return stated if isinstance(stated, int) else None


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device where the model takes its token ids: that of its embedding."""
    table = _embedding(model)
    return model_device(model) if table is None else table.device


def check_length(model: PreTrainedModel, length: int) -> None:
    """Raise ``RelaxPruneError`` if windows of ``length`` tokens are longer than the positions that ``model`` knows."""
    known = positions(model)
    if known is not None and length > known:
        raise RelaxPruneError(f"length {length} exceeds the {known} positions of the model: use at most {known}")


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that gives ids of which the model has no embedding, whether or not a text uses them.

    Raises:
        RelaxPruneError: naming the first of its tokens without one.
    """
    known = vocabulary(model)
    beyond = {} if known is None else {index: token for token, index in tokenizer.get_vocab().items() if index >= known}
    if beyond:
        first = min(beyond)
        raise RelaxPruneError(
            f"tokenizer has {len(beyond)} tokens beyond the {known} that the model has embeddings of (the first is "
            f"{beyond[first]!r}, id {first}): give the tokenizer that the model was trained with, or resize the "
            "model's embeddings to it"
        )


def check_same_tokenizer(tokenizer: PreTrainedTokenizerBase, dense: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a model whose predictions are of other tokens than the dense model's.

    Args:
        tokenizer: the model's.
        dense: the dense model's.
        source: where the model comes from, for the error.

    Raises:
        RelaxPruneError: naming the first token in which they differ.
    """
    differing = tokenizer.get_vocab().items() ^ dense.get_vocab().items()
    if differing:
        token, index = min(differing, key=lambda item: (item[1], item[0]))
        raise RelaxPruneError(
            f"model {source!r} must have the tokenizer of the dense model, got one that differs in {len(differing)} "
            f"tokens (the first is {token!r}, id {index}): give the model that it was made from"
        )


def check_windows(tokens: object) -> None:
    """Check that ``tokens`` are token windows, of whatever model.

    Raises:
        RelaxPruneError: not an integer tensor, not two-dimensional, or empty.
    """
    if not isinstance(tokens, torch.Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
        got = tokens.dtype if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        raise RelaxPruneError(f"tokens should be an integer tensor of shape (windows, length), got {got}")
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise RelaxPruneError(f"tokens should have shape (windows, length), both at least 1, got {tuple(tokens.shape)}")


def check_tokens(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Check token windows against a model.

    Args:
        model: any causal language model.
        tokens: (windows, length) integer ids.

    Raises:
        RelaxPruneError: not an integer tensor, not two-dimensional, empty, too long, or ids outside the vocabulary (on
            a GPU, those would only show up as a device-side assertion).
    """
    check_windows(tokens)
    check_length(model, tokens.shape[1])
    known, low, high = vocabulary(model), int(tokens.min()), int(tokens.max())
    if low < 0 or (known is not None and high >= known):
        raise RelaxPruneError(f"tokens hold ids from {low} to {high}, the model knows 0 to {(known or 1) - 1}")


def try_window(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Run a model on one window, for what no configuration says: a model may know fewer positions than it states.

    Raises:
        RelaxPruneError: as ``check_tokens``, or the model fails on it.
    """
    check_tokens(model, tokens)
    with evaluating(model), telling_of_length(tokens.shape[1]):
        model(tokens[:1].to(device=input_device(model), dtype=torch.int64))


@contextmanager
def telling_of_length(length: int) -> Iterator[None]:
    """Tell what a model raises on a window of ``length`` tokens as bad input."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError, AssertionError) as error:
        raise RelaxPruneError(
            f"model fails on a window of {length} tokens ({first_line(error)}): a shorter length may fit it"
        ) from error


def _embedding(model: PreTrainedModel) -> torch.Tensor | None:
    """Return the table of a model's token embeddings, None where the model does not say which it is."""
    try:
        module: Any = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return module.weight if isinstance(module, nn.Embedding) else None


def _rows(table: nn.Embedding) -> int:
    """Return how many positions a table has rows for; some leave out the first ones."""
    first = getattr(table, "offset", None)
    if not isinstance(first, int):
        first = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - first
