"""A checkpoint without its zeros: the other values and one bit for every entry, in safetensors.

Per weight file ``X.safetensors`` there is one ``X.compact.safetensors``. A tensor ``name`` that gets smaller by it is
stored as ``name.values``, its entries that are not +0.0 in their order and dtype, and ``name.mask``, one bit for each
entry in little order, set where there is a value; every other tensor as it is, and so one beside which the checkpoint
has a ``name.values`` or ``name.mask`` of its own. At half the weights of a bfloat16 matrix that is 9 of 16 bits.

The metadata has the weight file's header and the SHA-256 of the whole file, so that ``restore`` gives it back byte for
byte. Files written before they were recorded come back with every tensor bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from relaxprune.models.checkpoint import first_line
from relaxprune.models.tensor_files import checked_weights, open_weights
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs.mask_file import pack_mask, unpack_mask
from relaxprune.support.durable import file_sha256
from relaxprune.support.new_folder import copy_others, new_folder

FORMAT = "relaxprune.compact"
SCHEMA_VERSION = "1"
SUFFIX = ".compact.safetensors"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Restored:
    """What ``restore`` wrote and checked.

    Attributes:
        tensors: number of tensors, each as it was, bit by bit.
        exact: weight files that are as they were, byte for byte.
        tensors_only: weight files of which only the tensors are known to be: compacted before bytes were recorded.
    """

    tensors: int
    exact: list[str]
    tensors_only: list[str]


def compact(folder: Path, out: Path) -> tuple[int, int]:
    """Write a model's folder without the zeros of its weights.

    Args:
        folder: what ``relaxprune prune`` wrote, or any other checkpoint in safetensors.
        out: new folder, outside ``folder``; it gets every other file of ``folder`` as it is. It appears when complete.

    Returns:
        Bytes of the weight files before and after.

    Raises:
        RelaxPruneError: no such weights, damaged ones, or no such folder to write.
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


def restore(folder: Path, out: Path) -> Restored:
    """Undo ``compact``.

    Args:
        folder: what ``compact`` wrote.
        out: new folder, outside ``folder``, which gets the checkpoint as it was. It appears when complete.

    Raises:
        RelaxPruneError: no compact files, damaged ones, or no such folder to write.
    """
    files = sorted(folder.rglob(f"*{SUFFIX}"))
    if not files:
        raise RelaxPruneError(f"folder {str(folder)!r} has no *{SUFFIX}: give one that `masks compact` wrote")
    count = 0
    exact: list[str] = []
    tensors_only: list[str] = []
    with new_folder(out, folder) as staging:
        copy_others(folder, staging, set(files))
        for file in files:
            tensors, described = _read_compact(file)
            name = file.relative_to(folder).with_name(Path(described["source"]).name)
            written = exact if _write_source(file, tensors, described, _new_file(staging / name)) else tensors_only
            written.append(name.as_posix())
            count += len(tensors)
    return Restored(count, exact, tensors_only)


def _compact_name(name: str) -> str:
    """Return the name that a weight file's compact form has."""
    return name.removesuffix(".safetensors") + SUFFIX


def _write_compact(folder: Path, name: str, target: Path) -> None:
    """Write the compact form of one weight file."""
    source = folder / name
    tensors, metadata = _read(source)
    shapes = {key: list(tensor.shape) for key, tensor in tensors.items() if _shrinks(tensor)}
    shapes = {key: shape for key, shape in shapes.items() if not tensors.keys() & _parts(key)}
    packed = {key: tensor for key, tensor in tensors.items() if key not in shapes}
    for key in shapes:
        flat = tensors[key].reshape(-1)
        mask = _bits(flat) != 0
        packed[f"{key}.values"], packed[f"{key}.mask"] = flat[mask], pack_mask(mask)
    described = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "source": name,
        "metadata": json.dumps(metadata, sort_keys=True),
        "shapes": json.dumps(shapes, sort_keys=True),
        "sha256": _checksum(tensors),
        "header": _header(source),
        "file_sha256": file_sha256(source),
    }
    _save(packed, _new_file(target), described)


def _read_compact(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that a compact file stands for, checked, and its metadata."""
    packed, described = _read(file)
    if described.get("format") != FORMAT or described.get("schema_version") != SCHEMA_VERSION:
        raise RelaxPruneError(f"{str(file)!r} is no compact checkpoint of version {SCHEMA_VERSION}")
    lacking = {"source", "metadata", "shapes", "sha256"} - described.keys()
    if lacking:
        raise RelaxPruneError(f"{str(file)!r} is damaged: its metadata lacks {', '.join(sorted(lacking))}")
    if _compact_name(Path(described["source"]).name) != file.name:
        raise RelaxPruneError(
            f"{str(file)!r} is renamed or damaged: it says that it stands for {described['source']!r}"
        )
    try:
        whole = _unpack(packed, json.loads(described["shapes"]))
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise RelaxPruneError(f"{str(file)!r} is damaged: its tensors do not fit together") from error
    if _checksum(whole) != described["sha256"]:
        raise RelaxPruneError(f"{str(file)!r} is damaged: its checksum does not match its content")
    return whole, described


def _write_source(file: Path, tensors: Mapping[str, Tensor], described: Mapping[str, str], target: Path) -> bool:
    """Write the weight file that a compact one stands for.

    Returns:
        Whether it is that one byte for byte; False where only its tensors were recorded.
    """
    header = described.get("header", "").encode()
    try:
        metadata = {str(key): str(value) for key, value in json.loads(described["metadata"]).items()}
        places = json.loads(header or "{}")
        places.pop("__metadata__", None)
        ordered = [tensors[name] for name in sorted(places, key=lambda name: places[name]["data_offsets"])]
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise RelaxPruneError(f"{str(file)!r} is damaged: its tensors do not fit its header") from error
    if not header:
        _save(tensors, target, metadata)
        return False
    with target.open("wb") as written:
        written.write(len(header).to_bytes(8, "little") + header)
        for tensor in ordered:
            written.write(_raw(tensor))
    if file_sha256(target) != described.get("file_sha256"):
        raise RelaxPruneError(f"{str(file)!r} is damaged: what it restores is not the file that it was made of")
    return True


def _new_file(path: Path) -> Path:
    """Create an empty file, with the permissions of any file of the user's.

    Raises:
        RelaxPruneError: there is one.
    """
    if path.exists():
        raise RelaxPruneError(f"two files would become {path.name!r}: rename the one that holds no weights")
    path.touch()
    return path


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors to a file that is there, whose permissions stay."""
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata or None)
    except SafetensorError as error:
        raise RelaxPruneError(f"{path.name!r} cannot be written: {first_line(error)}") from error
    path.chmod(mode)


def _header(path: Path) -> str:
    """Return the header of a safetensors file that the library reads, as it stands there."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little")).decode()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file."""
    with open_weights(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _bits(tensor: Tensor) -> Tensor:
    """View a tensor's entries as integers of the same size: only +0.0 is 0."""
    return tensor if tensor.dtype == torch.bool else tensor.view(_INTEGERS[tensor.element_size()])


def _shrinks(tensor: Tensor) -> bool:
    """Tell whether values and bits take less than the tensor."""
    values = int((_bits(tensor.reshape(-1)) != 0).sum())
    return tensor.dim() >= 2 and values * tensor.element_size() + tensor.numel() / 8 < tensor.nbytes


def _parts(name: str) -> set[str]:
    """Return the names under which a tensor's values and bits are stored."""
    return {f"{name}.values", f"{name}.mask"}


def _unpack(packed: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Return the tensors as they were."""
    owned = {part for name in shapes for part in _parts(name)}
    whole = {name: tensor for name, tensor in packed.items() if name not in owned}
    for name, shape in shapes.items():
        values = packed[f"{name}.values"]
        flat = torch.zeros(math.prod(shape), dtype=values.dtype)
        _bits(flat)[unpack_mask(packed[f"{name}.mask"], (len(flat),))] = _bits(values)
        whole[name] = flat.reshape(shape)
    return whole


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    """View a tensor's bytes, as safetensors stores them."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
