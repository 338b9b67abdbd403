"""The file in which any codebase can hand over a layer: safetensors with ``weight`` and ``gram``.

The format has a page and a version of its own, ``docs/problem-file.md``. One call of
``safetensors.torch.save_file({"weight": …, "gram": …}, path)`` makes such a file. Metadata may add the version and the
set of masks; if weights may move, ``cross`` and ``dense_gram`` can be in it, as ``ReconstructionProblem`` takes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from relaxprune.problems import MaskProblem, Polytope, polytope_from_dict
from relaxprune.problems.checks import check_device
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.objective import Objective
from relaxprune.support.container import TensorFormat, check_format, metadata_json, open_tensors, write_tensors
from relaxprune.support.tensor_header import read_header

PROBLEM_FILE = TensorFormat(kind="problem file", name="relaxprune.problem", version=2, sealed=False)
_FIRST = replace(PROBLEM_FILE, version=1)  # one Gram, and nothing beside it
_REQUIRED = ("weight", "gram")
_OBJECTIVE = ("row_groups", "fisher", "linear", "outputs")
_OPTIONAL = ("cross", "dense_gram", *_OBJECTIVE)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NUMBERS = (torch.int64, torch.int32, torch.uint8)
_DIMENSIONS = {"gram": (2, 3), "fisher": (3,), "row_groups": (1,)}  # others have 2


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """A layer as a problem file holds it.

    Attributes:
        weight: (rows, cols).
        gram: (cols, cols), the mean over tokens of x xᵀ; or several, (groups, cols, cols).
        cross: (cols, cols) or None, the mean of the products of the inputs that the layer gets and those of the dense
            model's layer.
        dense_gram: (cols, cols) or None, the second moment of the dense model's inputs.
        row_groups, fisher, linear, outputs: as ``Objective`` takes them, or None.
        polytope: the set of masks, None if the file states none.
    """

    weight: Tensor
    gram: Tensor
    cross: Tensor | None = None
    dense_gram: Tensor | None = None
    polytope: Polytope | None = None
    row_groups: Tensor | None = None
    fisher: Tensor | None = None
    linear: Tensor | None = None
    outputs: Tensor | None = None

    def objective(self) -> Objective:
        """Return what the layer minimises if its weights stay.

        Raises:
            RelaxPruneError: a Gram that cannot be right.
        """
        return Objective(self.gram, **{name: getattr(self, name) for name in _OBJECTIVE})

    def mask_problem(self, polytope: Polytope | None = None) -> MaskProblem:
        """Return the problem of choosing a mask, with another set than the file's if one is given.

        Raises:
            RelaxPruneError: there is no set, or sizes or values cannot be right.
        """
        chosen = self.polytope if polytope is None else polytope
        if chosen is None:
            raise RelaxPruneError("the problem file states no set of masks: give a polytope")
        return MaskProblem(self.weight, self.objective(), chosen)

    def tensors(self) -> dict[str, Tensor]:
        """Return what the file holds, by name."""
        every = {name: getattr(self, name) for name in (*_REQUIRED, *_OPTIONAL)}
        return {name: tensor for name, tensor in every.items() if tensor is not None}


def read_problem_file(path: str | Path, device: str | None = None) -> LayerProblem:
    """Read a layer from a problem file; values and sizes are checked by the problem made from it.

    Args:
        path: a safetensors file; tensors and metadata of other names are not read.
        device: where to put the tensors, None for the CPU.

    Raises:
        RelaxPruneError: there is no such file or device, the file is damaged or of another version, lacks a tensor, has
            one of other dimensions or of another dtype than the page of the format says, or one that its version does
            not know, or states what is no set of masks.
        OSError: the file cannot be read.
    """
    path = Path(path)
    place = check_device(device or "cpu")
    polytope, what = stated_polytope(path), PROBLEM_FILE.describe(path)
    with open_tensors(path, what) as file:
        missing = sorted(set(_REQUIRED) - set(file.header.tensors))
        if missing:
            raise RelaxPruneError(f"{what} has no tensor {missing[0]!r}")
        names = [*_REQUIRED, *(name for name in _OPTIONAL if name in file.header.tensors)]
        found = file.tensors(names)
        version = file.header.metadata.get("schema_version", "1")
    _check_tensors(found, what)
    layer = LayerProblem(**{name: tensor.to(place) for name, tensor in found.items()}, polytope=polytope)
    if version == "1" and (newer := _beyond_first(layer)) is not None:
        raise RelaxPruneError(
            f"{what} has {newer}, which version 1 does not know: its metadata must say schema_version 2"
        )
    return layer


def _check_tensors(found: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors of other dimensions or dtypes than the format's."""
    for name, tensor in found.items():
        dimensions = _DIMENSIONS.get(name, (2,))
        if tensor.ndim not in dimensions:
            allowed = " or ".join(str(number) for number in dimensions)
            raise RelaxPruneError(f"{name!r} in {what} must have {allowed} dimensions, got shape {tuple(tensor.shape)}")
        dtypes = _NUMBERS if name == "row_groups" else _FLOATS
        if tensor.dtype not in dtypes:
            known = ", ".join(str(dtype) for dtype in dtypes)
            raise RelaxPruneError(f"{name!r} in {what} must have one of the dtypes {known}, got {tensor.dtype}")


def _beyond_first(layer: LayerProblem) -> str | None:
    """Return what a layer has that version 1 of the format does not know, None for nothing."""
    if layer.gram.ndim > 2:
        return "several Grams"
    return next((f"the tensor {name!r}" for name in _OBJECTIVE if getattr(layer, name) is not None), None)


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
        check_format(metadata, path, _FIRST if metadata["schema_version"] == "1" else PROBLEM_FILE)
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
    form = _FIRST if _beyond_first(layer) is None else PROBLEM_FILE
    metadata = {"format": form.name, "schema_version": str(form.version), **_set_of(layer)}
    write_tensors(Path(path), layer.tensors(), metadata)


def _set_of(layer: LayerProblem) -> Mapping[str, str]:
    """Return the metadata that states a layer's set of masks."""
    return {} if layer.polytope is None else {"polytope": json.dumps(layer.polytope.to_dict(), sort_keys=True)}
