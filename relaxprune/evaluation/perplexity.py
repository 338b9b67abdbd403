"""Perplexity as the pruning papers define it.

Non-overlapping windows of a stated length, no context carried over; in each window the mean cross-entropy of its
length - 1 predictions; the exponential of the mean of the window means. It is what SparseGPT (arXiv 2301.00774) and
Wanda (arXiv 2306.11695) report, and differs from lm-eval's word perplexity. It depends on the window length, so the
length is part of every result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from relaxprune.problems.errors import RelaxPruneError

from .passes import Window, chunks, over_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    @classmethod
    def of(cls, window_losses: Sequence[float], length: int) -> PerplexityResult:
        """Return the perplexity of windows with these mean cross-entropies.

        Raises:
            RelaxPruneError: their mean is too large for a perplexity.
        """
        windows = len(window_losses)
        mean_loss = math.fsum(window_losses) / windows
        return cls(_exp(mean_loss), mean_loss, windows, length, tuple(window_losses))

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
    losses = over_windows((model,), tokens, batch_size, window_loss)
    return PerplexityResult.of(losses, tokens.shape[1])


def window_loss(window: Window, which: int = 0, whose: str = "model") -> float:
    """Return the mean cross-entropy of one window, in nats.

    Args:
        window: the window with its logits.
        which: the model's place among those that read it.
        whose: how an error calls the model.

    Raises:
        RelaxPruneError: it is not finite.
    """
    logits = window.logits[which]
    targets = window.tokens[1:].to(logits.device)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    total = 0.0
    for part in chunks(targets.numel()):
        total += float(torch.nn.functional.cross_entropy(logits[part].to(dtype), targets[part], reduction="sum"))
    if not math.isfinite(total):
        raise RelaxPruneError(
            f"{whose} gives a loss of {total} in window {window.number}: its weights or activations overflow"
        )
    return total / targets.numel()


def _exp(mean_loss: float) -> float:
    try:
        return math.exp(mean_loss)
    except OverflowError as error:
        raise RelaxPruneError(f"model gives a mean loss of {mean_loss:.1f} nats, too large for a perplexity") from error
