"""Calibration text sampled from the model itself (self-calibration).

Williams, Chrysostomou and Aletras, "Self-calibration for Language Model Quantization and Pruning", arXiv 2410.17170:
text that the model writes is close to what it was trained on, and needs no data set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from relaxprune.models.forward import evaluating
from relaxprune.models.token_limits import check_length, input_device, vocabulary
from relaxprune.problems.errors import RelaxPruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sampler: TypeAlias = "Callable[[PreTrainedModel, int, int, int, float, int | None], torch.Tensor]"
"""What gives windows in the name of a model, with the arguments of ``sample_windows``."""
# Windows sampled at once: bounds the key-value cache.
_AT_ONCE = 16


def can_sample(model: torch.nn.Module) -> bool:
    """Return whether a model continues text token by token: a language model with an output head that is causal.

    Classes for causal models load encoders as well, so it is tried whether the second token changes what follows the
    first.
    """
    generates = getattr(model, "can_generate", None)
    decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if not callable(generates) or not generates() or decoder:
        return False
    language = cast("PreTrainedModel", model)  # they alone say whether they can generate
    if (vocabulary(language) or 0) < 2:
        return False
    with evaluating(model):
        logits = model(input_ids=torch.tensor([[0, 0], [0, 1]], device=input_device(language))).logits[:, 0].float()
    if not bool(torch.isfinite(logits).all()):
        return True  # nothing can be told from them, and sampling says so
    return bool(torch.allclose(logits[0], logits[1], rtol=1e-2, atol=1e-3 * float(logits.abs().max())))


def sample_windows(
    model: PreTrainedModel, windows: int, length: int, seed: int, temperature: float, start: int | None
) -> torch.Tensor:
    """Sample token windows from a causal language model, from its full distribution, token by token.

    An end-of-text token does not end a window: the model goes on with another text, as in its training data. Random
    numbers come from a separate generator: the global random state is left alone, and so are the training flags.

    Args:
        model: runs on its own device.
        windows: how many.
        length: tokens in each, at most the positions that the model knows.
        seed: for the sampling.
        temperature: divides the logits; 1 is the model's own distribution.
        start: first token of each window; None draws it uniformly from the vocabulary.

    Returns:
        (windows, length) int64 on the CPU.

    Raises:
        RelaxPruneError: ``length`` is too long for the model, it does not continue text, or its probabilities are not
            finite.
    """
    known = _checked_vocabulary(model, length)
    if not can_sample(model):
        raise RelaxPruneError(f"model must continue text token by token to sample from it, got {type(model).__name__}")
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device draws the same numbers
    first = torch.randint(known, (windows, 1), generator=generator)
    if start is not None:
        first.fill_(start)
    with evaluating(model):
        parts = [
            _continue(model, first[at : at + _AT_ONCE], length, temperature, generator)
            for at in range(0, windows, _AT_ONCE)
        ]
    return torch.cat(parts)


def random_windows(
    model: PreTrainedModel, windows: int, length: int, seed: int, temperature: float, start: int | None
) -> torch.Tensor:
    """Draw each token uniformly: windows of the right shape, where what the model would write does not matter.

    Args and errors are those of ``sample_windows``, without a pass through the model.
    """
    known = _checked_vocabulary(model, length)
    return torch.randint(known, (windows, length), generator=torch.Generator().manual_seed(seed))


def _checked_vocabulary(model: PreTrainedModel, length: int) -> int:
    """Return how many tokens a model knows, which must say so and read ``length`` of them."""
    check_length(model, length)
    known = vocabulary(model)
    if known is None:
        raise RelaxPruneError("model does not say how many tokens it knows, so that none can be drawn: give a text")
    return known


def _continue(
    model: PreTrainedModel, first: torch.Tensor, length: int, temperature: float, generator: torch.Generator
) -> torch.Tensor:
    """Continue (windows, 1) tokens to (windows, length), one forward pass per token."""
    device = input_device(model)
    tokens = first
    cache: Any = None
    while tokens.shape[1] < length:
        # A model that returns no cache reads the whole window again each time.
        inputs = tokens if cache is None else tokens[:, -1:]
        output = model(input_ids=inputs.to(device), past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        logits = output.logits[:, -1].to(device="cpu", dtype=torch.float32)  # (windows, vocabulary)
        if not bool(torch.isfinite(logits).all()):
            raise RelaxPruneError(f"model gives logits that are not finite after {tokens.shape[1]} sampled tokens")
        drawn = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], dim=1)
    return tokens
