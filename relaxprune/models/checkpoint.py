"""Checks of a checkpoint's files before anything is loaded: what is there, whole, safe to read and not quantised.

Only headers are read, so this costs milliseconds whatever the size of the model. The safetensors layout is that of
https://github.com/huggingface/safetensors: an 8-byte little-endian header length, a JSON header, then the data.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from relaxprune.problems.errors import RelaxPruneError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_LFS_START = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, so that a long foreign message fits into one sentence."""
    text = " ".join(str(arg) for arg in error.args) or type(error).__name__
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from ``path``; raises ``RelaxPruneError`` naming the file if it does not hold one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RelaxPruneError(f"{path} is not valid JSON ({first_line(error)}): fetch it again") from error
    if not isinstance(content, dict):
        raise RelaxPruneError(f"{path} should hold a JSON object and holds a {type(content).__name__}")
    return content


def check_config(folder: Path) -> None:
    """Refuse a folder without a ``config.json``, with a quantised model, or with an adapter instead of a model."""
    if (folder / "adapter_config.json").exists():
        raise RelaxPruneError(f"model folder {folder} holds an adapter: merge it into its base model and save that")
    if not (folder / "config.json").is_file():
        raise RelaxPruneError(f"model folder {folder} has no config.json: give the folder that save_pretrained wrote")
    config = read_json(folder / "config.json")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        quantised = part.get("quantization_config")
        if quantised:
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
            raise RelaxPruneError(
                f"model folder {folder} is quantised ({method}), and its weights cannot be pruned: give the model it "
                "was made from, or dequantise it first"
            )


def weight_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files that hold the weights: one, or the shards that the index names.

    Raises:
        RelaxPruneError: the index names a path that is absolute, climbs out of the folder, or is a link out of it.
    """
    if (folder / SINGLE_FILE).exists() or not (folder / INDEX_FILE).exists():
        return [SINGLE_FILE]  # transformers too takes the single file where both are there
    index = folder / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RelaxPruneError(f"{index} has no weight_map: fetch it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        _check_inside(index, name)
    return names


def _check_inside(index: Path, name: str) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    # Both flavours, because an index written for one system may be read on the other.
    climbs = ".." in posix.parts or ".." in windows.parts
    if not name or posix.is_absolute() or windows.drive or windows.root or climbs:
        raise RelaxPruneError(f"{index} names the shard {name!r}, a path outside its folder: do not trust it")
    target = (index.parent / name).resolve()
    if not any(target.is_relative_to(root) for root in _allowed_roots(index.parent.resolve())):
        raise RelaxPruneError(f"{index} names the shard {name!r}, a link to outside its folder: copy the file there")


def _allowed_roots(folder: Path) -> list[Path]:
    """The folder itself; a snapshot in a hub cache also links to the blobs beside it or to the cache's shared ones."""
    repository = folder.parent.parent
    if folder.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return [folder]
    return [folder, repository / "blobs", repository.parent / "blobs"]


def check_weights(folder: Path, names: list[str]) -> Counter[str]:
    """Check every weight file and return how many elements there are of each safetensors dtype (``"BF16"``...)."""
    counts: Counter[str] = Counter()
    for name in names:
        if not (folder / name).is_file():
            raise RelaxPruneError(_missing_sentence(folder, name))
        for tensor in read_safetensors_header(folder / name).values():
            counts[tensor["dtype"]] += prod(tensor["shape"])
    return counts


def _missing_sentence(folder: Path, name: str) -> str:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if name != SINGLE_FILE:
        return f"model folder {folder} lacks the shard {name} that its {INDEX_FILE} names: fetch it again"
    if pickles:
        return (
            f"model folder {folder} holds only pickled weights ({pickles[0]}), which can run code when read: convert "
            "it with save_pretrained(..., safe_serialization=True)"
        )
    return f"model folder {folder} has no weights: {SINGLE_FILE} or {INDEX_FILE} is needed"


def check_whole(path: Path) -> int:
    """Return the size of ``path`` in bytes; raises ``RelaxPruneError`` if it is empty or a git-LFS pointer."""
    size = path.stat().st_size
    if size == 0:
        raise RelaxPruneError(f"{path} is empty (0 bytes): fetch it again")
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LFS_START):
        lines = [line.split() for line in start.decode("ascii", "replace").splitlines()]
        expected = next((line[1] for line in lines if len(line) == 2 and line[0] == "size"), "an unknown number of")
        raise RelaxPruneError(
            f"{path} is a git-LFS pointer of {size} bytes, not the file of {expected} bytes: run `git lfs pull`"
        )
    return size


def read_safetensors_header(path: Path) -> Mapping[str, dict[str, Any]]:
    """Return the tensors that a safetensors file declares, ``{name: {"dtype", "shape", "data_offsets"}}``.

    Raises:
        RelaxPruneError: the file is empty, a git-LFS pointer, corrupt, or not of the size that its header declares.
    """
    size = check_whole(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise RelaxPruneError(f"{path} is no safetensors file: its header claims {length} bytes; fetch it again")
        if 8 + length > size:
            raise RelaxPruneError(f"{path} is truncated: {size} bytes of at least {8 + length}; fetch it again")
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        end = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
        well_formed = all(isinstance(t["dtype"], str) and prod(t["shape"]) >= 0 for t in header.values())
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise RelaxPruneError(f"{path} has a corrupt safetensors header: fetch it again") from error
    expected = 8 + length + end
    if size != expected or not well_formed:
        state = "truncated" if size < expected else "corrupt"
        raise RelaxPruneError(f"{path} is {state}: {size} bytes where its header declares {expected}; fetch it again")
    return header
