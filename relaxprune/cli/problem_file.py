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
    from safetensors import SafetensorError, safe_open

    from relaxprune import RelaxPruneError
    from relaxprune.checks import check_device

    place = check_device(device or "cpu")
    if not file.is_file():
        raise RelaxPruneError(f"problem file {str(file)!r} does not exist")
    try:
        with door(), safe_open(file, framework="pt") as tensors:
            missing = sorted({"weight", "gram"} - set(tensors.keys()))
            if missing:
                raise RelaxPruneError(f"problem file {str(file)!r} has no tensor {missing[0]!r}")
            weight, gram = tensors.get_tensor("weight").to(place), tensors.get_tensor("gram").to(place)
    except SafetensorError as error:
        raise RelaxPruneError(f"problem file {str(file)!r} is not a whole safetensors file: {error}") from error
    if weight.ndim != 2:
        raise RelaxPruneError(f"`weight` in {str(file)!r} must have 2 dimensions, got shape {tuple(weight.shape)}")
    return weight, gram
