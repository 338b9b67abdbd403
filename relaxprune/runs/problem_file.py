"""The file in which any codebase can hand over a layer: safetensors with ``weight`` and ``gram``.

If weights may move, it can also hold ``cross`` and ``dense_gram``, as ``ReconstructionProblem`` takes them. It needs
no metadata, so that one call of ``safetensors.torch.save_file`` makes such a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relaxprune.problems.checks import check_device
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.container import open_tensors, write_tensors

_REQUIRED = ("weight", "gram")
_OPTIONAL = ("cross", "dense_gram")
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """A layer as a problem file holds it.

    Attributes:
        weight: (rows, cols).
        gram: (cols, cols), the mean over tokens of x xᵀ.
        cross: (cols, cols) or None, the mean of the products of the inputs that the layer gets and those of the dense
            model's layer.
        dense_gram: (cols, cols) or None, the second moment of the dense model's inputs.
    """

    weight: Tensor
    gram: Tensor
    cross: Tensor | None = None
    dense_gram: Tensor | None = None


def read_problem_file(path: str | Path, device: str | None = None) -> LayerProblem:
    """Read a layer from a problem file; values and sizes are checked by the problem made from it.

    Args:
        path: a safetensors file; tensors of other names are not read.
        device: where to put the tensors, None for the CPU.

    Raises:
        RelaxPruneError: there is no such file or device, the file is damaged, lacks a tensor, or has one that is not a
            matrix of float64, float32, float16 or bfloat16.
        OSError: the file cannot be read.
    """
    path = Path(path)
    place = check_device(device or "cpu")
    what = f"problem file {str(path)!r}"
    if not path.is_file():
        raise RelaxPruneError(f"{what} does not exist")
    with open_tensors(path, what) as file:
        missing = sorted(set(_REQUIRED) - set(file.header.tensors))
        if missing:
            raise RelaxPruneError(f"{what} has no tensor {missing[0]!r}")
        names = [*_REQUIRED, *(name for name in _OPTIONAL if name in file.header.tensors)]
        found = file.tensors(names)
    for name, tensor in found.items():
        if tensor.ndim != 2:
            raise RelaxPruneError(f"{name!r} in {what} must have 2 dimensions, got shape {tuple(tensor.shape)}")
        if tensor.dtype not in _DTYPES:
            known = ", ".join(str(dtype) for dtype in _DTYPES)
            raise RelaxPruneError(f"{name!r} in {what} must have one of the dtypes {known}, got {tensor.dtype}")
    return LayerProblem(**{name: tensor.to(place) for name, tensor in found.items()})


def write_problem_file(path: str | Path, layer: LayerProblem) -> None:
    """Write a layer durably: the file appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {name: getattr(layer, name) for name in (*_REQUIRED, *_OPTIONAL)}
    write_tensors(Path(path), {name: tensor for name, tensor in tensors.items() if tensor is not None})
