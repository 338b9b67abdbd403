"""Running a model without leaving a trace, and the checks that come before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from relaxprune.problems.errors import RelaxPruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every part of ``model`` in evaluation mode, without gradients; restore each part's flag, errors or not."""
    modules = list(model.modules())
    flags = [module.training for module in modules]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device where the model takes its token ids: that of its embedding."""
    return next(model.get_input_embeddings().parameters()).device


def check_length(model: PreTrainedModel, length: int) -> None:
    """Raise ``RelaxPruneError`` if windows of ``length`` tokens are longer than the positions that ``model`` knows."""
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(known, int) and length > known:
        raise RelaxPruneError(f"length {length} exceeds the {known} positions of the model: use at most {known}")


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
    vocabulary = next(model.get_input_embeddings().parameters()).shape[0]
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise RelaxPruneError(f"tokens hold ids from {low} to {high}, the model knows 0 to {vocabulary - 1}")
