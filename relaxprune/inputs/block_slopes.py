"""How a model's loss on its text changes with what each block puts out: one backward pass over the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relaxprune.models.blocks import BlockList
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.states import HERE, Kept, Shelf
from relaxprune.support.forwards import hooked_forwards

from .batches import Batch, run_model, token_ids
from .checkpointing import checkpointed, flowing
from .tree import flatten

_ROUNDINGS = 64  # of the largest logit: how far two passes over the same first tokens may be apart


@dataclass(frozen=True, eq=False)
class BlockSlopes:
    """The gradients of the loss at the outputs of a model's blocks, batch by batch.

    Attributes:
        kept: (batch, block) -> the gradient at each tensor that the block puts out, None for one without any; each of
            the tensor's shape and dtype.
    """

    kept: dict[tuple[int, int], list[Kept | None]] = field(default_factory=dict)

    def take(self, batch: int, block: int) -> list[Tensor | None]:
        """Return the gradients at what a block put out, and forget them; none if the batch did not reach it."""
        found = self.kept.pop((batch, block), [])
        return [None if one is None else one.tensor() for one in found]


def block_slopes(model: nn.Module, blocks: BlockList, batches: Sequence[Batch], shelf: Shelf = HERE) -> BlockSlopes:
    """Return the gradients of the sum over tokens of −log p(next token) at what each block puts out.

    Activations are held for one block at a time, gradients at the outputs of all blocks.

    Args:
        model: in evaluation mode; its logits at a token must depend on that and earlier ones alone.
        blocks: its blocks.
        batches: of token ids.
        shelf: where the gradients are kept.

    Raises:
        RelaxPruneError: the model does not predict next tokens, batches hold no token ids or none to predict, or a
            gradient is not finite.
    """
    check_predictions(model, batches)
    slopes = BlockSlopes()
    for number, batch in enumerate(batches):
        with flowing(model), checkpointed(model, blocks):
            with _heard(blocks.modules) as heard:
                output = run_model(model, batch)
            loss = next_token_loss(logits_of(output), ids_of(batch, number), batch.kept)
            places = [(index, leaf) for index, leaves in heard.items() for leaf in leaves]
            wanted = [leaf for _, leaf in places if leaf.requires_grad]
            found = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
        for index, leaf in places:
            slope = next(found) if leaf.requires_grad else None
            if slope is not None and not bool(torch.isfinite(slope).all()):
                raise RelaxPruneError(f"the gradient at what block {index} puts out holds NaN or Inf in batch {number}")
            slopes.kept.setdefault((number, index), []).append(None if slope is None else shelf.put(slope))
    return slopes


def next_token_loss(logits: Tensor, ids: Tensor, kept: Tensor | None) -> Tensor:
    """Return the sum of −log p(next token) over pairs of neighbours that both count, a scalar in float32 or wider.

    Args:
        logits: (windows, tokens, vocabulary).
        ids: (windows, tokens).
        kept: (windows, tokens) bool, False for tokens that do not count; None if all do.
    """
    scores, labels = logits[:, :-1], ids[:, 1:].to(logits.device)
    if kept is not None:
        pairs = (kept[:, :-1] & kept[:, 1:]).to(logits.device)
        scores, labels = scores[pairs], labels[pairs]
    exact = torch.promote_types(logits.dtype, torch.float32)
    return cross_entropy(scores.reshape(-1, scores.shape[-1]).to(exact), labels.reshape(-1), reduction="sum")


def check_predictions(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Show on one batch that logits say what comes next: another last token leaves those of all others as they are.

    Last is what counts last in a window, for a model may not look at the padding after it.

    Raises:
        RelaxPruneError: they do not, there are none for each token, or no batch has a token to predict.
    """
    batch, ids, counts = _with_targets(batches)
    tokens = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(counts, tokens, -1).amax(dim=1, keepdim=True)  # -1 for a window in which nothing counts
    place = last.clamp(min=1)
    old, first, previous = (ids.gather(1, where) for where in (place, torch.zeros_like(place), place - 1))
    other = ids.scatter(1, place, torch.where(old == first, previous, first))
    if bool((other == ids).all()):  # windows of one token over and over
        return
    args, kwargs = (_exchanged(value, ids, other) for value in (batch.args, batch.kwargs))
    with torch.no_grad():
        one = logits_of(run_model(model, batch))
        two = logits_of(run_model(model, Batch(args, kwargs, batch.kept, batch.decoder_kept)))
    if one.shape[:2] != ids.shape:
        raise RelaxPruneError(f"objective needs logits for each of {tuple(ids.shape)} tokens, got {tuple(one.shape)}")
    before = (counts & (tokens < last)).to(one.device)
    changed = (one - two).abs()[before].amax()
    if not float(changed) <= _ROUNDINGS * torch.finfo(one.dtype).eps * float(one[before].abs().amax()):
        raise RelaxPruneError(
            "objective needs a model that predicts each token from those before it, but logits change by "
            f"{float(changed):.3g} with a later token: leave it out for this model"
        )


def _with_targets(batches: Sequence[Batch]) -> tuple[Batch, Tensor, Tensor]:
    """Return the first batch with a token to predict, its ids and which of them count, (windows, tokens) each.

    Raises:
        RelaxPruneError: there is none.
    """
    for number, batch in enumerate(batches):
        ids = ids_of(batch, number)
        counts = torch.ones_like(ids, dtype=torch.bool) if batch.kept is None else batch.kept.to(ids.device)
        if bool((counts[:, :-1] & counts[:, 1:]).any()):
            return batch, ids, counts
    raise RelaxPruneError(
        "objective needs tokens to predict, each right after another one that counts, but batches hold none: give "
        "windows of at least 2 tokens"
    )


def logits_of(output: Any) -> Tensor:
    """Return the (windows, tokens, vocabulary) logits of a model's output.

    Raises:
        RelaxPruneError: it has none.
    """
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise RelaxPruneError(
            f"objective needs a model that puts out logits for its tokens, got a {type(output).__name__}"
        )
    return logits


def ids_of(batch: Batch, number: int) -> Tensor:
    """Return a batch's token ids, (windows, tokens).

    Raises:
        RelaxPruneError: it has none.
    """
    ids = token_ids(batch, "input_ids", *batch.args[:1])
    if ids is None:
        raise RelaxPruneError(
            f"objective needs batches of token ids of shape (windows, length), got none in batch {number}"
        )
    return ids


def _exchanged(arguments: Any, old: Tensor, new: Tensor) -> Any:
    """Return arguments with one tensor in the place of another."""
    if isinstance(arguments, dict):
        return {name: new if value is old else value for name, value in arguments.items()}
    return tuple(new if value is old else value for value in arguments)


@contextmanager
def _heard(blocks: Sequence[nn.Module]) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the tensors that blocks put out in the forward passes of a ``with`` block, by the blocks' numbers."""
    heard: dict[int, list[Tensor]] = {}

    def listen(index: int) -> Any:
        return lambda _module, _args, output: heard.update({index: flatten(output)[0]})

    with hooked_forwards((block, listen(index)) for index, block in enumerate(blocks)):
        yield heard
