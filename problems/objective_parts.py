"""The parts of an objective, as they are given: prepared, and checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_finite, described
from .errors import RelaxPruneError
from .gram import Gram

Grams = Tensor | Gram | Sequence[Tensor | Gram]


def row_numbers(given: Tensor | None, groups: int, rows: int) -> Tensor | None:
    """Return the Gram of each row by number, (rows,) int64 on the CPU, or None for one Gram.

    Raises:
        RelaxPruneError: ``given`` is no number of a Gram for each row, or is left out where rows do not divide evenly.
    """
    if given is None and groups == 1:
        return None
    if given is None:
        if rows % groups:
            raise RelaxPruneError(f"gram has {groups} matrices, which do not divide {rows} rows: give row_groups")
        return torch.arange(groups).repeat_interleave(rows // groups)
    whole = isinstance(given, Tensor) and not given.is_floating_point() and not given.is_complex()
    if not whole or tuple(given.shape) != (rows,) or given.dtype == torch.bool:
        raise RelaxPruneError(f"row_groups must be whole numbers of shape ({rows},), got {described(given)}")
    numbers = given.detach().to("cpu", torch.int64)
    if int(numbers.min()) < 0 or int(numbers.max()) >= groups:
        raise RelaxPruneError(
            f"row_groups must lie from 0 to {groups - 1}, got {int(numbers.min())} to {int(numbers.max())}"
        )
    return numbers if groups > 1 else None


def prepared_grams(gram: Grams, name: str) -> tuple[Gram, ...]:
    """Return one or several Grams, prepared."""
    if isinstance(gram, Gram):
        return (gram,)
    if isinstance(gram, Tensor) and gram.dim() != 3:
        return (Gram(gram, name),)
    if not isinstance(gram, (Tensor, list, tuple)):
        raise RelaxPruneError(f"{name} must be a square (cols, cols) tensor, got {described(gram)}")
    if not len(gram):
        raise RelaxPruneError(f"{name} must be at least one matrix, got none")
    several = [one if isinstance(one, Gram) else Gram(one, f"{name}[{number}]") for number, one in enumerate(gram)]
    return tuple(several)


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse what is not finite floats of a shape on a device."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tuple(tensor.shape) != shape:
        raise RelaxPruneError(f"{name} must be a float tensor of shape {shape}, got {described(tensor)}")
    if tensor.device != device:
        raise RelaxPruneError(f"{name} is on {tensor.device}, but weight is on {device}")
    check_finite(name, tensor)
