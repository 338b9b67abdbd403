"""The file in which any codebase can hand over a layer: safetensors with ``weight`` and ``gram``.

The format has a page and a version of its own, ``docs/problem-file.md``. One call of
``safetensors.torch.save_file({"weight": …, "gram": …}, path)`` makes such a file. Metadata may add the version and the
set of masks; if weights may move, ``cross`` and ``dense_gram`` can be in it, as ``ReconstructionProblem`` takes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relaxprune.problems import MaskProblem, Polytope, polytope_from_dict
from relaxprune.problems.checks import check_device
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.container import TensorFormat, check_format, metadata_json, open_tensors, write_tensors
from relaxprune.support.tensor_header import read_header

PROBLEM_FILE = TensorFormat(kind="problem file", name="relaxprune.problem", sealed=False)
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
        polytope: the set of masks, None if the file states none.
    """

    weight: Tensor
    gram: Tensor
    cross: Tensor | None = None
    dense_gram: Tensor | None = None
    polytope: Polytope | None = None

    def mask_problem(self, polytope: Polytope | None = None) -> MaskProblem:
        """Return the problem of choosing a mask, with another set than the file's if one is given.

        Raises:
            RelaxPruneError: there is no set, or sizes or values cannot be right.
        """
        chosen = self.polytope if polytope is None else polytope
        if chosen is None:
            raise RelaxPruneError("the problem file states no set of masks: give a polytope")
        return MaskProblem(self.weight, self.gram, chosen)


def read_problem_file(path: str | Path, device: str | None = None) -> LayerProblem:
    """Read a layer from a problem file; values and sizes are checked by the problem made from it.

    Args:
        path: a safetensors file; tensors and metadata of other names are not read.
        device: where to put the tensors, None for the CPU.

    Raises:
        RelaxPruneError: there is no such file or device, the file is damaged or of another version, lacks a tensor, has
            one that is not a matrix of float64, float32, float16 or bfloat16, or states what is no set of masks.
        OSError: the file cannot be read.
    """
    path = Path(path)
    place = check_device(device or "cpu")
    polytope = stated_polytope(path)
    what = PROBLEM_FILE.describe(path)
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
    return LayerProblem(**{name: tensor.to(place) for name, tensor in found.items()}, polytope=polytope)


def stated_polytope(path: str | Path) -> Polytope | None:
    """Return the set of masks that a problem file states, None if it states none; only its header is read.

    Raises:
        RelaxPruneError: there is no such file, its header is damaged, it is of another version, or the set is none.
        OSError: the file cannot be read.
    """
    path = Path(path)
    what = PROBLEM_FILE.describe(path)
    if not path.is_file():
        raise RelaxPruneError(f"{what} does not exist")
    metadata = read_header(path, what).metadata
    if "schema_version" in metadata:  # without one it is version 1, whatever library wrote it
        check_format(metadata, path, PROBLEM_FILE)
    if "polytope" not in metadata:
        return None
    try:
        return polytope_from_dict(metadata_json(metadata, "polytope", path, PROBLEM_FILE))
    except RelaxPruneError as error:
        raise RelaxPruneError(f"{what} states no set of masks that is known here: {error}") from error


def write_problem_file(path: str | Path, layer: LayerProblem) -> None:
    """Write a layer durably: the file appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {name: getattr(layer, name) for name in (*_REQUIRED, *_OPTIONAL)}
    metadata = {"format": PROBLEM_FILE.name, "schema_version": str(PROBLEM_FILE.version), **_set_of(layer)}
    write_tensors(Path(path), {name: tensor for name, tensor in tensors.items() if tensor is not None}, metadata)


def _set_of(layer: LayerProblem) -> Mapping[str, str]:
    """Return the metadata that states a layer's set of masks."""
    return {} if layer.polytope is None else {"polytope": json.dumps(layer.polytope.to_dict(), sort_keys=True)}
