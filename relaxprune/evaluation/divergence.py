"""How far a model's predictions are from those of the dense model: KL divergence, with its standard error.

Pruned models are compared by KL(dense ‖ model), the mean over positions of Σ_v p_v (log p_v − log q_v) with p the dense
model's next-token distribution and q the pruned one's. It sees every token's probability, where perplexity sees that of
the token that came, and it is 0 for the dense model itself. Two models are compared window by window on the same
tokens: what makes a window hard then cancels, so that much smaller differences show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy import stats

from relaxprune.models.token_limits import vocabulary
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.text.token_windows import tokens_sha256

from .passes import Window, chunks, over_windows
from .perplexity import PerplexityResult, window_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL, DENSE = "model", "dense model"  # how errors call the two


@dataclass(frozen=True)
class PairedDifference:
    """The mean over windows of one model's value less another's, on the same windows.

    Attributes:
        mean: below 0 if the first model's is lower.
        standard_error: of the mean, over windows; None for a single one.
        windows: how many there are.
    """

    mean: float
    standard_error: float | None
    windows: int

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> PairedDifference:
        """Return the difference of the means of two models' windows, in the same order.

        Raises:
            RelaxPruneError: they are not equally many.
        """
        if len(first) != len(second):
            raise RelaxPruneError(f"a paired difference needs equally many windows, got {len(first)} and {len(second)}")
        differences = [one - other for one, other in zip(first, second, strict=True)]
        return cls(*mean_and_error(differences), len(differences))

    @property
    def clear(self) -> bool:
        """Whether the difference is not 0 at the level of 95 %, by Student's t over windows."""
        if self.standard_error is None:
            return False
        return abs(self.mean) > float(stats.t.ppf(0.975, self.windows - 1)) * self.standard_error

    def __str__(self) -> str:
        return with_error(self.mean, self.standard_error)


@dataclass(frozen=True)
class DivergenceResult:
    """A KL divergence from the dense model with everything needed to compare it.

    Attributes:
        mean: mean over the windows of the mean over their positions of KL(dense ‖ model), in nats.
        standard_error: of ``mean``, over windows; None for a single one.
        window_means: each window's mean over its positions, in nats, in order.
        perplexity: the model's, from the same passes.
        dense_perplexity: the dense model's.
        tokens_sha256: of the token windows; only results on the same ones have a paired difference.
    """

    mean: float
    standard_error: float | None
    window_means: tuple[float, ...]
    perplexity: PerplexityResult
    dense_perplexity: PerplexityResult
    tokens_sha256: str

    @property
    def windows(self) -> int:
        """How many windows were read."""
        return len(self.window_means)

    @property
    def length(self) -> int:
        """Tokens in each window."""
        return self.perplexity.length

    def minus(self, other: DivergenceResult) -> PairedDifference:
        """Return this model's divergence less another's, paired by window.

        Raises:
            RelaxPruneError: they were not measured on the same tokens.
        """
        if self.tokens_sha256 != other.tokens_sha256:
            raise RelaxPruneError(
                f"a paired difference needs the same tokens, got those of SHA-256 {self.tokens_sha256[:12]} and "
                f"{other.tokens_sha256[:12]}: measure both on the same windows"
            )
        return PairedDifference.of(self.window_means, other.window_means)

    def __str__(self) -> str:
        error = with_error(self.mean, self.standard_error)
        return f"KL {error} nats a token ({self.windows} windows of {self.length} tokens)"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-ready dictionary."""
        return {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "window_means": list(self.window_means),
            "perplexity": self.perplexity.to_dict(),
            "dense_perplexity": self.dense_perplexity.to_dict(),
            "tokens_sha256": self.tokens_sha256,
        }


def divergence(
    model: PreTrainedModel, dense: PreTrainedModel, tokens: torch.Tensor, batch_size: int = 1
) -> DivergenceResult:
    """Measure how far a causal language model's predictions are from the dense model's.

    Args:
        model: the pruned model; runs on its own device, in its own dtype, and is left unchanged.
        dense: the model to be close to, as ``model``; may have another dtype or device.
        tokens: (windows, length) integer ids without padding, length at least 2. Every position counts, the last too.
        batch_size: windows per forward pass; affects memory and time, and the result only by rounding.

    Returns:
        The result; distributions are compared in float32, or float64 if either model's logits are.

    Raises:
        RelaxPruneError: the tokens do not fit a model, the models predict different vocabularies, or logits or a
            divergence are not finite (the error names the model and the window).
    """
    check_vocabularies(vocabulary(model), vocabulary(dense))
    judged = over_windows((model, dense), tokens, batch_size, _judge)
    means, losses, dense_losses = zip(*judged, strict=True)
    length = tokens.shape[1]
    return DivergenceResult(
        *mean_and_error(means),
        window_means=means,
        perplexity=PerplexityResult.of(losses, length),
        dense_perplexity=PerplexityResult.of(dense_losses, length),
        tokens_sha256=tokens_sha256(tokens),
    )


def check_vocabularies(model: int | None, dense: int | None) -> None:
    """Refuse two models that predict different numbers of tokens; None is an unknown number.

    Raises:
        RelaxPruneError: naming both numbers.
    """
    if model is not None and dense is not None and model != dense:
        raise RelaxPruneError(
            f"model and dense model must predict the same tokens, got vocabularies of {model} and {dense}: compare "
            f"models of one tokenizer, and if only padding differs, call resize_token_embeddings({min(model, dense)})"
        )


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of some windows' values and its standard error, None for a single window."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return mean, None
    squares = math.fsum((value - mean) * (value - mean) for value in values)
    return mean, math.sqrt(squares / (count - 1) / count)


def with_error(mean: float, standard_error: float | None) -> str:
    """Return a mean with its standard error, as tables show it."""
    return f"{mean:.4f}" if standard_error is None else f"{mean:.4f} ± {standard_error:.4f}"


def _judge(window: Window) -> tuple[float, float, float]:
    """Return a window's mean divergence, and the mean cross-entropies of both models."""
    for logits, whose in zip(window.logits, (MODEL, DENSE), strict=True):
        if not bool(torch.isfinite(logits).all()):
            raise RelaxPruneError(
                f"{whose} gives logits that are not finite in window {window.number}: its weights or activations "
                "overflow"
            )
    return _window_divergence(window), window_loss(window, 0, MODEL), window_loss(window, 1, DENSE)


def _window_divergence(window: Window) -> float:
    """Return the mean over a window's positions of KL(dense ‖ model), in nats."""
    logits, dense_logits = window.logits
    check_vocabularies(logits.shape[-1], dense_logits.shape[-1])
    dtype = torch.promote_types(torch.promote_types(logits.dtype, dense_logits.dtype), torch.float32)
    total = 0.0
    for part in chunks(len(window.tokens)):
        own = logits[part].to(dtype).log_softmax(-1)  # (positions, vocabulary)
        aim = dense_logits[part].to(device=logits.device, dtype=dtype).log_softmax(-1)
        each = torch.nn.functional.kl_div(own, aim, reduction="none", log_target=True).sum(-1)
        total += float(each.clamp(min=0).sum())  # rounding alone can take a position below 0
    if not math.isfinite(total):
        raise RelaxPruneError(f"divergence of window {window.number} is {total}: the logits of the models overflow")
    return total / len(window.tokens)
