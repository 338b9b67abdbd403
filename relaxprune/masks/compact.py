"""A checkpoint without its zeros: the other values and one bit for every entry, in safetensors.

Per weight file ``X.safetensors`` there is one ``X.compact.safetensors``. A tensor ``name`` that gets smaller by it is
stored as ``name.values``, its entries that are not +0.0 in their order and dtype, and ``name.mask``, one bit for each
entry in little order, set where there is a value; every other tensor as it is. At half the weights of a bfloat16 matrix
that is 9 of 16 bits. ``restore`` gives every file back bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError

from ..pruning.checkpoint import weight_files
from ..pruning.mask_file import pack_mask, unpack_mask

FORMAT = "relaxprune.compact"
SCHEMA_VERSION = "1"
SUFFIX = ".compact.safetensors"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def compact(folder: Path, out: Path) -> tuple[int, int]:
    """Write a model's folder without the zeros of its weights.

    Args:
        folder: what `relaxprune prune` wrote, or any other checkpoint in safetensors.
        out: new folder; it gets every other file of ``folder`` as it is.

    Returns:
        Bytes of the weight files before and after.

    Raises:
        RelaxPruneError: no such weights, or damaged ones.
    """
    names = weight_files(folder)
    for name in names:
        if not (folder / name).is_file():
            raise RelaxPruneError(f"model folder {str(folder)!r} lacks its weights {name}")
    _copy_others(folder, out, set(names))
    before = after = 0
    for name in names:
        tensors, metadata = _read(folder / name)
        shapes = {key: list(tensor.shape) for key, tensor in tensors.items() if _shrinks(tensor)}
        packed = {key: tensor for key, tensor in tensors.items() if key not in shapes}
        for key in shapes:
            flat = tensors[key].reshape(-1)
            mask = _bits(flat) != 0
            packed[f"{key}.values"], packed[f"{key}.mask"] = flat[mask], pack_mask(mask)
        target = out / (name.removesuffix(".safetensors") + SUFFIX)
        described = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "source": name,
            "metadata": json.dumps(metadata, sort_keys=True),
            "shapes": json.dumps(shapes, sort_keys=True),
            "sha256": _checksum(tensors),
        }
        save_file(packed, target, described)
        before, after = before + (folder / name).stat().st_size, after + target.stat().st_size
    return before, after


def restore(folder: Path, out: Path) -> int:
    """Undo `compact`.

    Args:
        folder: what ``compact`` wrote.
        out: new folder, which gets the checkpoint as it was.

    Returns:
        Number of tensors.

    Raises:
        RelaxPruneError: no compact files, or damaged ones.
    """
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        raise RelaxPruneError(f"folder {str(folder)!r} has no *{SUFFIX}: give one that `masks compact` wrote")
    _copy_others(folder, out, {file.name for file in files})
    count = 0
    for file in files:
        tensors, described = _read(file)
        if described.get("format") != FORMAT or described.get("schema_version") != SCHEMA_VERSION:
            raise RelaxPruneError(f"{str(file)!r} is no compact checkpoint of version {SCHEMA_VERSION}")
        try:
            whole = _unpack(tensors, json.loads(described["shapes"]))
            metadata = json.loads(described["metadata"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise RelaxPruneError(f"{str(file)!r} is damaged: its tensors do not fit together") from error
        if _checksum(whole) != described.get("sha256"):
            raise RelaxPruneError(f"{str(file)!r} is damaged: its checksum does not match its content")
        source = Path(described["source"]).name
        save_file(whole, out / source, metadata or None)
        count += len(whole)
    return count


def _copy_others(folder: Path, out: Path, leave: set[str]) -> None:
    """Copy every file but the weights into a new folder."""
    if out.exists() and any(out.iterdir()):
        raise RelaxPruneError(f"output folder {str(out)!r} must be new or empty")
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and str(relative) not in leave:
            (out / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / relative)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file.

    Raises:
        RelaxPruneError: it is not whole.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError) as error:
        raise RelaxPruneError(f"{str(path)!r} is damaged or truncated: {error}") from error


def _bits(tensor: Tensor) -> Tensor:
    """View a tensor's entries as integers of the same size: only +0.0 is 0."""
    return tensor if tensor.dtype == torch.bool else tensor.view(_INTEGERS[tensor.element_size()])


def _shrinks(tensor: Tensor) -> bool:
    """Tell whether values and bits take less than the tensor."""
    values = int((_bits(tensor.reshape(-1)) != 0).sum())
    return tensor.dim() >= 2 and values * tensor.element_size() + tensor.numel() / 8 < tensor.nbytes


def _unpack(packed: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Return the tensors as they were."""
    owned = {f"{name}.{part}" for name in shapes for part in ("values", "mask")}
    whole = {name: tensor for name, tensor in packed.items() if name not in owned}
    for name, shape in shapes.items():
        values = packed[f"{name}.values"]
        flat = torch.zeros(math.prod(shape), dtype=values.dtype)
        flat[unpack_mask(packed[f"{name}.mask"], (len(flat),))] = values
        whole[name] = flat.reshape(shape)
    return whole


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
