"""Checks of arguments: bad input is refused in one sentence that names it, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import TypeGuard

import torch
from torch import Tensor

from .errors import RelaxPruneError, did_you_mean


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether ``value`` is an int or a float, NaN and infinities included; a bool is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one_of(name: str, value: object, known: Iterable[str], others: str = "") -> None:
    """Raise RelaxPruneError unless ``value`` is one of the ``known`` words; the closest is suggested.

    Args:
        name: of the argument.
        value: what was given.
        known: the words.
        others: what the caller takes besides, as the sentence is to go on: ``" or None"``.
    """
    words = list(known)
    if not isinstance(value, str) or value not in words:
        guess = did_you_mean(str(value), words)
        raise RelaxPruneError(f"{name} must be one of {', '.join(words)}{others}, got {value!r}{guess}")


def whole_number(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise RelaxPruneError unless ``value`` is an int of at least ``low`` and at most ``high``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise RelaxPruneError(f"{name} must be a whole number of at least {low}, got {value!r}")
    if high is not None and value > high:
        raise RelaxPruneError(f"{name} must be at most {high}, got {value}")


def number(name: str, value: object, low: float) -> None:
    """Raise RelaxPruneError unless ``value`` is a finite number of at least ``low``."""
    if not is_number(value) or not low <= value < inf:
        raise RelaxPruneError(f"{name} must be a number of at least {low:g}, got {value!r}")


def positive_number(name: str, value: object) -> None:
    """Raise RelaxPruneError unless ``value`` is a finite number above 0."""
    if not is_number(value) or not 0 < value < inf:
        raise RelaxPruneError(f"{name} must be a positive number, got {value!r}")


def fraction(name: str, value: object) -> None:
    """Raise RelaxPruneError unless ``value`` is a number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise RelaxPruneError(f"{name} must lie in [0, 1], got {value!r}")


def check_mask(name: str, mask: object, shape: tuple[int, int], device: torch.device | None = None) -> None:
    """Raise RelaxPruneError unless ``mask`` is a bool tensor of this ``shape`` (rows, cols), on ``device`` if given."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != tuple(shape):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise RelaxPruneError(f"{name} must be a bool mask of shape {tuple(shape)}, got {got}")
    if device is not None and mask.device != device:
        raise RelaxPruneError(f"{name} is on {mask.device}, but the problem is on {device}")
