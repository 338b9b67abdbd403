"""Perplexity as the pruning papers define it.

Non-overlapping windows of a stated length, no context carried over; in each window the mean cross-entropy of its
length - 1 predictions; the exponential of the mean of the window means. It is what SparseGPT (arXiv 2301.00774) and
Wanda (arXiv 2306.11695) report, and differs from lm-eval's word perplexity. It depends on the window length, so the
length is part of every result.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from relaxprune.models.forward import evaluating
from relaxprune.models.token_limits import check_tokens, input_device, telling_of_length
from relaxprune.problems.errors import RelaxPruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Positions whose logits are widened to float32 at once: 256 rows of a vocabulary of 150,000 are 154 MB.
_POSITIONS_AT_ONCE = 256


@dataclass(frozen=True)
class PerplexityResult:
    """A perplexity with everything needed to compare it.

    Attributes:
        perplexity: exp of ``mean_loss``.
        mean_loss: mean over the windows of their mean cross-entropy, in nats.
        windows: how many windows were read.
        length: tokens in each window.
        window_losses: each window's mean cross-entropy, in nats, in order.
    """

    perplexity: float
    mean_loss: float
    windows: int
    length: int
    window_losses: tuple[float, ...]

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.3f} ({self.windows} windows of {self.length} tokens)"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-ready dictionary."""
        return {**asdict(self), "window_losses": list(self.window_losses)}


def perplexity(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    batch_size: int = 1,
) -> PerplexityResult:
    """Measure the perplexity of a causal language model on token windows.

    Args:
        model: runs on its own device, in its own dtype; training flags and configuration are left unchanged.
        tokens: (windows, length) integer ids without padding, length at least 2.
        batch_size: windows per forward pass; affects memory and time, and the result only by rounding.

    Returns:
        The result; cross-entropies are taken in float32, or float64 if the logits are.

    Raises:
        RelaxPruneError: the tokens are not an integer tensor or do not fit the model, or a window's loss is not finite
            (the error names the window).
    """
    check_tokens(model, tokens)
    windows, length = tokens.shape
    if length < 2:
        raise RelaxPruneError(f"tokens have windows of {length} token, and a prediction needs at least 2")
    if batch_size < 1:
        raise RelaxPruneError(f"batch_size should be at least 1, got {batch_size}")
    device = input_device(model)
    losses: list[float] = []
    with evaluating(model):
        for start in range(0, windows, batch_size):
            batch = tokens[start : start + batch_size].to(device=device, dtype=torch.int64)
            # use_cache=False as an argument leaves the configuration, and that of nested text models, untouched.
            with telling_of_length(length):
                logits = model(input_ids=batch, use_cache=False).logits  # (batch, length, vocabulary)
            for row in range(batch.shape[0]):
                losses.append(_window_loss(logits[row], batch[row], start + row))
    mean_loss = math.fsum(losses) / windows
    return PerplexityResult(_exp(mean_loss), mean_loss, windows, length, tuple(losses))


def _window_loss(logits: torch.Tensor, tokens: torch.Tensor, window: int) -> float:
    """Mean cross-entropy in nats of one window: logits (length, vocabulary), tokens (length,)."""
    targets = tokens[1:].to(logits.device)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    total = 0.0
    for start in range(0, targets.numel(), _POSITIONS_AT_ONCE):
        stop = min(start + _POSITIONS_AT_ONCE, targets.numel())
        part = torch.nn.functional.cross_entropy(logits[start:stop].to(dtype), targets[start:stop], reduction="sum")
        total += float(part)
    if not math.isfinite(total):
        raise RelaxPruneError(f"model gives a loss of {total} in window {window}: its weights or activations overflow")
    return total / targets.numel()


def _exp(mean_loss: float) -> float:
    try:
        return math.exp(mean_loss)
    except OverflowError as error:
        raise RelaxPruneError(f"model gives a mean loss of {mean_loss:.1f} nats, too large for a perplexity") from error
