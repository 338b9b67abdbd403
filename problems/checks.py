"""Checks of arguments: bad input is refused in one sentence that names it, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import TypeGuard

import torch
from torch import Tensor

from .errors import RelaxPruneError, did_you_mean

_LARGEST_SEED = 2**32 - 2  # the generators of some devices keep 32 bits; the next one is that of held-out samples


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether ``value`` is an int or a float, NaN and infinities included; a bool is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one_of(name: str, value: object, known: Iterable[str], others: str = "") -> None:
    """Raise RelaxPruneError unless ``value`` is one of the ``known`` words; the closest is suggested.

    Args:
        name: name of the argument.
        value: what was given.
        known: the allowed words.
        others: what else the caller takes, as the sentence should go on: ``" or None"``.
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


def fraction(name: str, value: object, others: str = "") -> None:
    """Raise RelaxPruneError unless ``value`` is a number from 0 to 1; ``others`` as for ``one_of``."""
    if not is_number(value) or not 0 <= value <= 1:
        raise RelaxPruneError(f"{name} must lie in [0, 1]{others}, got {value!r}")


def check_seed(seed: object) -> None:
    """Raise RelaxPruneError unless ``seed`` is a whole number that random generators take."""
    whole_number("seed", seed, 0, _LARGEST_SEED)


def described(value: object) -> str:
    """Return the dtype and shape of a tensor, and the type of anything else, for sentences that end in "got"."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_floats(name: str, value: object, dimensions: tuple[int, ...] = (2,), form: str = "(rows, cols)") -> None:
    """Raise RelaxPruneError unless ``value`` is a float tensor with entries.

    Args:
        name: name of the argument.
        value: what was given.
        dimensions: how many dimensions it may have.
        form: its shape, for the sentence.
    """
    if not isinstance(value, Tensor) or value.dim() not in dimensions or not value.is_floating_point():
        raise RelaxPruneError(f"{name} must be a float tensor of shape {form}, got {described(value)}")
    if 0 in value.shape:
        raise RelaxPruneError(f"{name} must have at least one row and one column, got {tuple(value.shape)}")


def check_finite(name: str, value: Tensor) -> None:
    """Raise RelaxPruneError if a tensor holds a value that is not finite."""
    if not bool(torch.isfinite(value).all()):
        raise RelaxPruneError(f"{name} holds NaN or Inf")


def check_mask(name: str, mask: object, shape: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return ``mask``.

    Raises:
        RelaxPruneError: not a bool tensor of this ``shape`` (rows, cols), or not on ``device``, if given.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != tuple(shape):
        raise RelaxPruneError(f"{name} must be a bool mask of shape {tuple(shape)}, got {described(mask)}")
    if device is not None and mask.device != device:
        raise RelaxPruneError(f"{name} is on {mask.device}, but the problem is on {device}")
    return mask


def check_device(device: str) -> torch.device:
    """Return the device of this name.

    Raises:
        RelaxPruneError: torch knows no such device, or cannot compute on it here.
    """
    try:
        found = torch.device(device)
        works = found.type != "meta"
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError):
        works = False
    if not works:
        raise RelaxPruneError(f"device must be one that works here ({', '.join(_devices())}), got {device!r}")
    return found


def _devices() -> list[str]:
    """Name the CPU and every accelerator that torch finds."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]
