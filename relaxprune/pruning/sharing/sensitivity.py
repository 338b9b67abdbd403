"""How much a model's output depends on each layer's output, which makes errors of different layers comparable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relaxprune.inputs.batches import Batch, run_model
from relaxprune.inputs.checkpointing import checkpointed, flowing
from relaxprune.inputs.tree import flatten
from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.forwards import hooked_forwards

TOKENS = 2048


def sensitivities(
    model: nn.Module, blocks: BlockList, layers: Sequence[PrunableLayer], batches: Sequence[Batch], seed: int = 0
) -> dict[str, float]:
    """Return the squared gradient of the model's loss at each layer's output, per output and summed over tokens.

    A small random change of a layer's output of mean square e changes the loss by e times this, up to a factor that
    all layers share: the trace of the Fisher information at the output, over the number of outputs. The loss of a
    model that gives ``logits`` is the cross-entropy of labels drawn from its own distribution; of any other model, the
    sum of what it puts out with random signs (the Gauss-Newton matrix of squared errors).

    Args:
        model: in evaluation mode; gradients are asked for and dropped again, parameters stay as they are.
        blocks: its blocks, whose activations are held one block at a time.
        layers: the layers.
        batches: calibration batches; the first are used, up to 2048 tokens and until all layers are reached.
        seed: of the labels or signs.

    Returns:
        layer name -> Σ over tokens of ‖gradient‖² / outputs, for the layers that were reached, fused experts left out;
        at least 0.

    Raises:
        RelaxPruneError: a gradient is not finite, or the model puts out nothing that has one.
    """
    layers = [layer for layer in layers if layer.expert is None]  # what an expert puts out is not seen
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, float] = {}
    tokens = 0
    for batch in batches:
        with flowing(model), checkpointed(model, blocks):
            with _heard(layers) as seen:
                loss, count = _loss(run_model(model, batch), batch, generator)
            pairs = [(layer, output) for layer in layers for output in seen.get(layer.name, [])]
            gradients = torch.autograd.grad(loss, [output for _, output in pairs], allow_unused=True)
        for (layer, _), gradient in zip(pairs, gradients, strict=True):
            size = 0.0 if gradient is None else float(gradient.to(torch.float64).square().sum())
            if not size < float("inf"):
                raise RelaxPruneError(f"the gradient at the output of layer {layer.name!r} holds NaN or Inf")
            found[layer.name] = found.get(layer.name, 0.0) + size / layer.shape[0]
        tokens += count
        if tokens >= TOKENS and len(found) == len(layers):
            break
    return found


@contextmanager
def _heard(layers: Sequence[PrunableLayer]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what the layers put out in the forward passes of a ``with`` block."""
    seen: dict[str, list[Tensor]] = {}

    def listen(name: str) -> Any:
        return lambda _module, _args, output: seen.setdefault(name, []).append(output)

    with hooked_forwards((layer.module, listen(layer.name)) for layer in layers):
        yield seen


def _loss(output: Any, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
    """Return the loss whose gradients are wanted, a scalar, and the number of tokens (or of rows) in it."""
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor) and logits.dim() >= 2:
        scores = logits.reshape(-1, logits.shape[-1]).float()  # (tokens, classes)
        kept = batch.kept if batch.decoder_kept is None else batch.decoder_kept
        if kept is not None and kept.numel() == len(scores):
            scores = scores[kept.reshape(-1).to(scores.device)]
        labels = torch.multinomial(scores.detach().softmax(dim=-1).cpu(), 1, generator=generator).squeeze(1)
        return cross_entropy(scores, labels.to(scores.device), reduction="sum"), len(scores)
    leaves = [leaf for leaf in flatten(output)[0] if leaf.requires_grad]
    if not leaves:
        raise RelaxPruneError("model must put out a tensor that depends on its weights, for allocation 'model'")
    total = leaves[0].new_zeros((), dtype=torch.float32)
    for leaf in leaves:
        signs = torch.randint(0, 2, leaf.shape, generator=generator).mul_(2).sub_(1)
        total = total + (leaf.float() * signs.to(leaf.device)).sum()
    return total, max(1, leaves[0].numel() // leaves[0].shape[-1]) if leaves[0].dim() else 1
