"""One way through token windows, for everything that is measured of a model's predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from relaxprune.models.forward import evaluating
from relaxprune.models.token_limits import check_tokens, input_device, telling_of_length
from relaxprune.problems.checks import whole_number
from relaxprune.problems.errors import RelaxPruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Positions whose logits are widened to float32 at once: 256 rows of a vocabulary of 150,000 are 154 MB.
_POSITIONS_AT_ONCE = 256

Judged = TypeVar("Judged")


@dataclass(frozen=True, eq=False)
class Window:
    """One window and what models predict on it.

    Attributes:
        number: its place among the windows.
        tokens: (length,) int64 on the CPU.
        logits: (length, vocabulary) of each model, on the model's own device, in its own dtype.
    """

    number: int
    tokens: torch.Tensor
    logits: tuple[torch.Tensor, ...]


def over_windows(
    models: Sequence[PreTrainedModel], tokens: torch.Tensor, batch_size: int, judge: Callable[[Window], Judged]
) -> list[Judged]:
    """Run models on the same token windows and measure each window.

    Args:
        models: causal language models, each on its own device, in its own dtype; training flags and configuration are
            left unchanged.
        tokens: (windows, length) integer ids without padding, length at least 2.
        batch_size: windows per forward pass.
        judge: called once for each window, in order.

    Returns:
        What the judge returned, window by window.

    Raises:
        RelaxPruneError: the tokens are not an integer tensor, do not fit a model, or hold no prediction.
    """
    for model in models:
        check_tokens(model, tokens)
    windows, length = tokens.shape
    if length < 2:
        raise RelaxPruneError(f"tokens have windows of {length} token, and a prediction needs at least 2")
    whole_number("batch_size", batch_size, 1)
    judged: list[Judged] = []
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for start in range(0, windows, batch_size):
            batch = tokens[start : start + batch_size].to(device="cpu", dtype=torch.int64)
            logits = [_logits(model, batch) for model in models]
            for row, own in enumerate(batch):
                judged.append(judge(Window(start + row, own, tuple(each[row] for each in logits))))
    return judged


def chunks(positions: int) -> Iterator[slice]:
    """Yield the positions of a window in parts whose logits may be widened at once."""
    for start in range(0, positions, _POSITIONS_AT_ONCE):
        yield slice(start, min(start + _POSITIONS_AT_ONCE, positions))


def _logits(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Return a model's logits (batch, length, vocabulary) of a batch (batch, length)."""
    # use_cache=False as an argument leaves the configuration, and that of nested text models, untouched.
    with telling_of_length(batch.shape[1]):
        logits: torch.Tensor = model(input_ids=batch.to(input_device(model)), use_cache=False).logits
    return logits
