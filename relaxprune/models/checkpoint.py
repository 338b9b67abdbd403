"""Checks of a checkpoint's files before anything is loaded: complete, safe to read and not quantised.

Only headers are read, so this costs milliseconds whatever the size of the model.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.json_files import check_size, is_kind, read_json
from relaxprune.support.tensor_header import TensorHeader, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Everything that describes a model and its tokenizer; weights are fetched by name, once the description is accepted.
DESCRIPTION_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "README.md")
# Where configurations state how many layers there are.
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_ALWAYS = 2**16  # what other counts may be beside any checkpoint


def check_config(folder: Path) -> None:
    """Refuse a folder without ``config.json``, with an endless file, a quantised model, or an adapter only."""
    if (folder / "adapter_config.json").exists():
        raise RelaxPruneError(f"model folder {folder} holds an adapter: merge it into its base model and save that")
    if not (folder / "config.json").is_file():
        raise RelaxPruneError(f"model folder {folder} has no config.json: give the folder that save_pretrained wrote")
    for pattern in DESCRIPTION_FILES:
        for path in filter(Path.is_file, folder.glob(pattern)):
            check_size(path, "fetch it again")
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
        return [SINGLE_FILE]  # transformers also takes the single file if both exist
    index = folder / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RelaxPruneError(f"{str(index)!r} has no weight_map: fetch it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        _check_inside(index, name)
    return names


def _check_inside(index: Path, name: str) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    # Both flavours, because an index written for one system may be read on the other.
    climbs = ".." in posix.parts or ".." in windows.parts
    if not name or "\0" in name or posix.is_absolute() or windows.drive or windows.root or climbs:
        raise RelaxPruneError(f"{index} names the shard {name!r}, a path outside its folder: do not trust it")
    target = (index.parent / name).resolve()
    if not any(target.is_relative_to(root) for root in allowed_roots(index.parent.resolve())):
        raise RelaxPruneError(f"{index} names the shard {name!r}, a link to outside its folder: copy the file there")


def allowed_roots(folder: Path) -> list[Path]:
    """The folder itself; a snapshot in a hub cache also links to its own blobs or to the cache's shared ones."""
    repository = folder.parent.parent
    if folder.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return [folder]
    return [folder, repository / "blobs", repository.parent / "blobs"]


def checked_weights(folder: Path) -> list[str]:
    """Return the names of a checkpoint's weight files, after checking that their headers match their sizes.

    Raises:
        RelaxPruneError: there is no such folder, or no weights in safetensors, or they are damaged.
    """
    if not folder.is_dir():
        raise RelaxPruneError(f"model folder {str(folder)!r} does not exist: give one with weights in safetensors")
    names = weight_files(folder)
    weight_headers(folder, names)
    return names


def weight_headers(folder: Path, names: list[str]) -> list[TensorHeader]:
    """Return the header of each weight file.

    Raises:
        RelaxPruneError: a file is missing, empty, a git-LFS pointer, corrupt, or not of the size that it declares.
    """
    headers = []
    for name in names:
        if not (folder / name).is_file():
            raise RelaxPruneError(_missing_sentence(folder, name))
        headers.append(read_header(folder / name, weight_file(folder / name), "fetch it again"))
    return headers


def weight_file(path: Path) -> str:
    """Return what error messages call a weight file."""
    return f"weight file {str(path)!r}"


def count_elements(headers: list[TensorHeader]) -> Counter[str]:
    """Return the number of elements of each safetensors dtype (``"BF16"``...)."""
    counts: Counter[str] = Counter()
    for header in headers:
        for entry in header.tensors.values():
            counts[entry.dtype] += prod(entry.shape)
    return counts


def count_pieces(headers: list[TensorHeader]) -> int:
    """Return the number of tensors, where one with more than two dimensions counts as the stack that it may be."""
    entries = [entry for header in headers for entry in header.tensors.values()]
    return sum(entry.shape[0] if len(entry.shape) > 2 else 1 for entry in entries)


def check_counts(folder: Path, headers: list[TensorHeader]) -> None:
    """Refuse a configuration that counts more of anything than the checkpoint can have, before any of it is built.

    Raises:
        RelaxPruneError: naming the entry.
    """
    shapes = [entry.shape for header in headers for entry in header.tensors.values()]
    most = max([_ALWAYS, len(shapes), *(size for shape in shapes for size in shape)])
    config = read_json(folder / "config.json")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key, count in part.items():
            layers = key in _LAYER_COUNTS
            if not is_kind(count, int) or not (layers or key.startswith("num_")):
                continue
            if count > (len(shapes) if layers else most):
                raise RelaxPruneError(
                    f"{str(folder / 'config.json')!r} says {key} {count}, and the checkpoint has only {len(shapes)} "
                    "tensors: fetch it again"
                )


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
