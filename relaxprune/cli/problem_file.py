"""The file that a layer is handed over in: safetensors with ``weight`` and ``gram``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .endings import door

if TYPE_CHECKING:
    from torch import Tensor


def read_layer(file: Path, device: str | None) -> tuple[Tensor, Tensor]:
    """Return the weight (rows, cols) and the Gram matrix of a problem file, on ``device`` (None for the CPU).

    Raises:
        RelaxPruneError: there is no such file, it is not whole, or lacks a tensor.
    """
    tensors = read_tensors(file, device)
    return tensors["weight"], tensors["gram"]


def read_tensors(file: Path, device: str | None, optional: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return ``weight`` and ``gram`` of a problem file, and those of the optional tensors that it has.

    Raises:
        RelaxPruneError: there is no such file, it is not whole, or lacks a tensor.
    """
    from safetensors import SafetensorError, safe_open

    from relaxprune import RelaxPruneError
    from relaxprune.problems.checks import check_device

    place = check_device(device or "cpu")
    if not file.is_file():
        raise RelaxPruneError(f"problem file {str(file)!r} does not exist")
    try:
        with door(), safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            missing = sorted({"weight", "gram"} - names)
            if missing:
                raise RelaxPruneError(f"problem file {str(file)!r} has no tensor {missing[0]!r}")
            wanted = ["weight", "gram", *(name for name in optional if name in names)]
            found: dict[str, Tensor] = {name: tensors.get_tensor(name).to(place) for name in wanted}
    except SafetensorError as error:
        raise RelaxPruneError(f"problem file {str(file)!r} is not a whole safetensors file: {error}") from error
    if found["weight"].ndim != 2:
        shape = tuple(found["weight"].shape)
        raise RelaxPruneError(f"`weight` in {str(file)!r} must have 2 dimensions, got shape {shape}")
    return found
