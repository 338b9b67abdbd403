"""Reading a converted folder back."""

from __future__ import annotations

from pathlib import Path

import torch

from relaxprune.problems.checks import check_device
from relaxprune.problems.errors import RelaxPruneError

from .record import read_conversion
from .registry import make_target
from .target import ConvertedModel


def load_converted(folder: str | Path, device: str = "cpu") -> ConvertedModel:
    """Load a model that ``masks convert`` wrote.

    On a device whose kernels take the form, the weights stay in it; elsewhere they are unpacked, which ``kernel`` says.

    Args:
        folder: the converted folder.
        device: where the model goes.

    Raises:
        RelaxPruneError: it is none or damaged, its target needs a package that is missing or another device.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RelaxPruneError(f"converted folder {str(folder)!r} does not exist: give one that masks convert wrote")
    check_device(device)
    return make_target(read_conversion(path)["target"]).read(path, torch.device(device))
