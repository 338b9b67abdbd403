"""Norms that commute with rotations once their gains are taken out of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

# What the weight of a norm is where it scales nothing: Gemma's gain is 1 + w, most others' w, which at 0 puts out 0.
_TRIED = (0.0, 1.0)
_TOLERANCE = 1e-4  # many norms compute in float32 whatever they are given


def random_rotation(size: int, seed: int = 0) -> Tensor:
    """Return a random orthogonal (size, size) matrix, float64."""
    numbers = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    basis, triangle = torch.linalg.qr(numbers)
    found: Tensor = basis * triangle.diagonal().sign()
    return found


def unit_weight(norm: nn.Module, width: int) -> float | None:
    """Return the weight at which a norm scales no channel and commutes with rotations; None if there is none.

    It is found by running a copy of the norm on random numbers.

    Args:
        norm: a module without children whose only parameter, if any, is a ``weight`` of (width,).
        width: of the residual stream.
    """
    own = dict(norm.named_parameters())
    if own.keys() - {"weight"} or any(parameter.shape != (width,) for parameter in own.values()):
        return None
    for unit in _TRIED:
        twin = without_gain(norm, unit)
        rotation = random_rotation(width)
        tokens = torch.randn(4, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
        with torch.no_grad():
            plain, turned = twin(tokens), twin(tokens @ rotation)
        size = plain.norm()
        if bool(size > 0) and bool((turned - plain @ rotation).norm() <= _TOLERANCE * size):
            return unit
    return None


def without_gain(norm: nn.Module, unit: float, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a copy of a norm that scales no channel, on the CPU for float64, else where the norm is."""
    twin = copy.deepcopy(norm).to(dtype)
    twin = twin.cpu() if dtype == torch.float64 else twin
    for parameter in twin.parameters():
        parameter.data.fill_(unit)
    return twin


def gain_of(norm: nn.Module, unit: float) -> Tensor | None:
    """Return by what a norm multiplies each channel, (width,) float64; None for one without a weight."""
    weight = getattr(norm, "weight", None)
    return None if weight is None else weight.detach().to(torch.float64) + (1.0 - unit)
