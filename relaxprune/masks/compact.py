"""A checkpoint without its zeros: the other values and one bit per entry, in safetensors.

Each weight file ``X.safetensors`` becomes an ``X.compact.safetensors``. A tensor ``name`` that gets smaller by it is
stored as ``name.values``, its entries that are not +0.0 in their order and dtype, and ``name.mask``, one bit per entry
in little bit order, set where there is a value. Every other tensor is stored as it is, and so is one if the checkpoint
has a ``name.values`` or ``name.mask`` of its own. At half the weights of a bfloat16 matrix that is 9 of 16 bits.

The metadata has the weight file's header and the SHA-256 of the whole file, so that ``restore`` gives it back byte for
byte. From files written before these were recorded, it gives back every tensor bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relaxprune.models.checkpoint import checked_weights, weight_file
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.container import (
    TensorFormat,
    metadata_json,
    open_tensors,
    read_container,
    write_container,
    write_data,
    write_tensors,
)
from relaxprune.support.durable import file_sha256
from relaxprune.support.json_files import Values, misfit
from relaxprune.support.mask_bits import pack_mask, unpack_mask
from relaxprune.support.new_folder import copy_others, new_folder
from relaxprune.support.sentences import damaged
from relaxprune.support.tensor_bits import as_integers, checksum

SUFFIX = ".compact.safetensors"
# The checksum covers what is restored, so the container has none of its own.
COMPACT_FILE = TensorFormat(
    kind="compact checkpoint",
    name="relaxprune.compact",
    keys=("source", "metadata", "shapes", "sha256"),
    sealed=False,
)


@dataclass(frozen=True)
class RestoreResult:
    """What ``restore`` wrote and checked.

    Attributes:
        tensors: number of tensors, each restored bit for bit.
        exact: weight files restored byte for byte.
        tensors_only: weight files whose tensors alone could be checked: compacted before file hashes were recorded.
    """

    tensors: int
    exact: list[str]
    tensors_only: list[str]


def compact(folder: Path, out: Path) -> tuple[int, int]:
    """Write a copy of a model's folder without the zeros of its weights.

    Args:
        folder: what ``relaxprune prune`` wrote, or any other checkpoint in safetensors.
        out: new folder, outside ``folder``; every other file is copied as it is. It appears when complete.

    Returns:
        Bytes of the weight files before and after.

    Raises:
        RelaxPruneError: the weights are missing or damaged, or ``out`` cannot be written.
    """
    names = checked_weights(folder)
    weights = {folder / name for name in names}
    strays = sorted(set(folder.rglob(f"*{SUFFIX}")) - weights)
    if strays:
        raise RelaxPruneError(f"{str(strays[0])!r} has a name that only `masks compact` may give: move or rename it")
    before = after = 0
    with new_folder(out, folder) as staging:
        copy_others(folder, staging, weights)
        for name in names:
            target = staging / _compact_name(name)
            _write_compact(folder, name, target)
            before, after = before + (folder / name).stat().st_size, after + target.stat().st_size
    return before, after


def restore(folder: Path, out: Path) -> RestoreResult:
    """Undo ``compact``.

    Args:
        folder: what ``compact`` wrote.
        out: new folder, outside ``folder``, for the original checkpoint. It appears when complete.

    Raises:
        RelaxPruneError: compact files are missing or damaged, or ``out`` cannot be written.
    """
    files = compact_files(folder)
    count = 0
    exact: list[str] = []
    tensors_only: list[str] = []
    with new_folder(out, folder) as staging:
        copy_others(folder, staging, set(files))
        for file in files:
            tensors, described = _read_compact(file)
            name = file.relative_to(folder).with_name(Path(described["source"]).name)
            _refuse_taken(staging / name)
            written = exact if _write_source(file, tensors, described, staging / name) else tensors_only
            written.append(name.as_posix())
            count += len(tensors)
    return RestoreResult(count, exact, tensors_only)


def restored_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all compact files of a folder as they were before ``compact``, by their stored names.

    Raises:
        RelaxPruneError: compact files are missing or damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in compact_files(folder):
        tensors |= _read_compact(file)[0]
    return tensors


def compact_files(folder: Path) -> list[Path]:
    """Return the compact files of a folder.

    Raises:
        RelaxPruneError: there are none.
    """
    files = sorted(folder.rglob(f"*{SUFFIX}"))
    if not files:
        raise RelaxPruneError(f"folder {str(folder)!r} has no *{SUFFIX}: give one that `masks compact` wrote")
    return files


def _compact_name(name: str) -> str:
    """Return the name of a weight file's compact form."""
    return name.removesuffix(".safetensors") + SUFFIX


def _write_compact(folder: Path, name: str, target: Path) -> None:
    """Write the compact form of one weight file."""
    source = folder / name
    with open_tensors(source, weight_file(source)) as file:
        tensors, header = file.tensors(), file.header
    shapes = {key: list(tensor.shape) for key, tensor in tensors.items() if _shrinks(tensor)}
    shapes = {key: shape for key, shape in shapes.items() if not tensors.keys() & _parts(key)}
    packed = {key: tensor for key, tensor in tensors.items() if key not in shapes}
    for key in shapes:
        flat = tensors[key].reshape(-1)
        mask = as_integers(flat) != 0
        packed[f"{key}.values"], packed[f"{key}.mask"] = flat[mask], pack_mask(mask)
    described = {
        "source": name,
        "metadata": json.dumps(dict(header.metadata), sort_keys=True),
        "shapes": json.dumps(shapes, sort_keys=True),
        "sha256": checksum(sorted(tensors.items())),
        "header": header.text,
        "file_sha256": file_sha256(source),
    }
    _refuse_taken(target)
    write_container(target, COMPACT_FILE, packed, described)


def _read_compact(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the original tensors of a compact file, checked, and its metadata."""
    packed, described = read_container(file, COMPACT_FILE)
    if _compact_name(Path(described["source"]).name) != file.name:
        raise RelaxPruneError(
            f"{str(file)!r} is renamed or damaged: it says that it stands for {described['source']!r}"
        )
    shapes = metadata_json(described, "shapes", file, COMPACT_FILE)
    try:
        whole = _unpack(packed, shapes)
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise damaged(repr(str(file)), "its tensors do not fit together") from error
    if checksum(sorted(whole.items())) != described["sha256"]:
        raise damaged(repr(str(file)), "its checksum does not match its content")
    return whole, described


def _write_source(file: Path, tensors: Mapping[str, Tensor], described: Mapping[str, str], target: Path) -> bool:
    """Write the weight file that a compact one stands for.

    Returns:
        Whether it is the original byte for byte; False if only its tensors were recorded.
    """
    header = described.get("header", "").encode()
    if not header:
        metadata = metadata_json(described, "metadata", file, COMPACT_FILE)
        if misfit(metadata, Values(str)):
            raise damaged(repr(str(file)), "its recorded metadata has the wrong type")
        write_tensors(target, tensors, metadata)
        return False
    try:
        places = json.loads(header)
        places.pop("__metadata__", None)
        ordered = [tensors[name] for name in sorted(places, key=lambda name: places[name]["data_offsets"])]
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(repr(str(file)), "its tensors do not fit its header") from error
    with target.open("wb") as written:
        write_data(written, len(header).to_bytes(8, "little") + header, ordered)
    if file_sha256(target) != described.get("file_sha256"):
        raise damaged(repr(str(file)), "what it restores is not the file that it was made from")
    return True


def _refuse_taken(path: Path) -> None:
    """Refuse a path that another file was copied to.

    Raises:
        RelaxPruneError: it exists.
    """
    if path.exists():
        raise RelaxPruneError(f"two files would become {path.name!r}: rename the one that holds no weights")


def _shrinks(tensor: Tensor) -> bool:
    """Return whether values and bits take less space than the tensor."""
    values = int((as_integers(tensor.reshape(-1)) != 0).sum())
    return tensor.dim() >= 2 and values * tensor.element_size() + tensor.numel() / 8 < tensor.nbytes


def _parts(name: str) -> set[str]:
    """Return the names under which a tensor's values and bits are stored."""
    return {f"{name}.values", f"{name}.mask"}


def _unpack(packed: Mapping[str, Tensor], shapes: Any) -> dict[str, Tensor]:
    """Return the original tensors; raises ValueError before it allocates one that its bits do not cover."""
    if misfit(shapes, Values([int])):
        raise ValueError("no shapes")
    owned = {part for name in shapes for part in _parts(name)}
    whole = {name: tensor for name, tensor in packed.items() if name not in owned}
    for name, shape in shapes.items():
        values = packed[f"{name}.values"]
        mask = unpack_mask(packed[f"{name}.mask"], (math.prod(shape),))
        flat = torch.zeros(len(mask), dtype=values.dtype)
        as_integers(flat)[mask] = as_integers(values)
        whole[name] = flat.reshape(shape)
    return whole
