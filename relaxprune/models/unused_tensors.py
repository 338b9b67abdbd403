"""Tensors of a checkpoint that its model does not use, and carrying them over into the files of the pruned model.

Multi-token-prediction layers, towers, score heads, buffers that are stored on purpose: transformers drops them, and of
many it does not even say so. Which they are is found by the headers: what is neither a tensor of the model nor one that
saving it would write is tried on an empty model of the same class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.container import open_tensors, write_data
from relaxprune.support.durable import durable_path, write_json
from relaxprune.support.json_files import read_json
from relaxprune.support.sentences import some
from relaxprune.support.tensor_bits import same_bits
from relaxprune.support.tensor_header import DTYPES, TensorEntry, header_bytes, read_header

from .checkpoint import INDEX_FILE, weight_file, weight_files
from .gguf_file import gguf_tensor, gguf_tensors
from .loaders import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class UnusedTensors:
    """Tensors of a source that its model does not use.

    Attributes:
        files: name -> the file that holds it, safetensors or GGUF.
    """

    files: Mapping[str, Path] = field(default_factory=dict)

    def read(self, name: str) -> Tensor:
        """Return one of them, on the CPU; of a GGUF file it is dequantised to float32."""
        path = self.files[name]
        if path.suffix.lower() == ".gguf":
            return gguf_tensor(path, name)
        with open_tensors(path, weight_file(path)) as file:
            return file.tensor(name)

    def append_to(self, folder: Path) -> None:
        """Add them to the last weight file of a saved model, under the names that they have in the source.

        Raises:
            RelaxPruneError: a tensor of the model has the name of one of them.
        """
        if not self.files:
            return
        names = weight_files(folder)
        for name in names:
            _refuse_clash(folder / name, self.files)
        path = folder / names[-1]
        with open_tensors(path, weight_file(path)) as file, durable_path(path) as scratch:
            tensors = {**file.tensors(), **{name: self.read(name) for name in self.files}}
            header, order = header_bytes(tensors, file.header.metadata)
            with scratch.open("wb") as out:
                write_data(out, header, (tensors[name] for name in order))
        if (folder / INDEX_FILE).is_file():
            self._index(folder / INDEX_FILE, names[-1])

    def differences(self, folder: Path) -> list[str]:
        """Return those that a saved model's files do not hold bit for bit."""
        held = {name: folder / file for file in weight_files(folder) for name in _entries(folder / file)}
        written = UnusedTensors(held)
        return [name for name in self.files if name not in held or not same_bits(written.read(name), self.read(name))]

    def _index(self, index: Path, file: str) -> None:
        """Name them in the index of a model in several files."""
        content = read_json(index)
        content["weight_map"] |= dict.fromkeys(self.files, file)
        content.setdefault("metadata", {})["total_size"] = sum(
            entry.end - entry.start
            for name in weight_files(index.parent)
            for entry in _entries(index.parent / name).values()
        )
        write_json(index, content)


def find_unused(model: PreTrainedModel, folder: Path) -> UnusedTensors:
    """Return the tensors of a checkpoint of safetensors files that ``model``, loaded from it, does not use.

    Raises:
        RelaxPruneError: one of them has a dtype that cannot be written again.
    """
    stored = {name: folder / file for file in weight_files(folder) for name in _entries(folder / file)}
    known = {*model.state_dict(), *saved_names(model)}
    left = {name: path for name, path in stored.items() if not any(form in known for form in forms(model, name))}
    entries = {name: _entries(path)[name] for name, path in left.items()}
    strange = [name for name, entry in entries.items() if entry.dtype not in DTYPES]
    if strange:
        raise RelaxPruneError(
            f"model folder {folder} holds tensors that the model does not use, in types that cannot be written again "
            f"({some(strange)}): remove them from the checkpoint, or give the model without them"
        )
    used = set(_used_of(model, entries))
    return UnusedTensors({name: path for name, path in left.items() if name not in used})


def find_unused_gguf(model: PreTrainedModel, path: Path) -> UnusedTensors:
    """Return the tensors of a GGUF file that ``model``, loaded from it, does not use.

    Loading renames, permutes, splits and merges, and keeps every entry: so the entries that the model lacks must be
    those of the tensors for whose names it has no place.

    Raises:
        RelaxPruneError: they are not.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture, sizes = gguf_tensors(path)
    kind: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    places = get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    held = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    lacking = sum(sizes.values()) - sum(held.values())
    left = [name for name in sizes if name not in places] if lacking else []
    if lacking != sum(sizes[name] for name in left):
        raise RelaxPruneError(
            f"model file {str(path)!r} holds {sum(sizes.values())} weights and the model made of it "
            f"{sum(held.values())}, and the names do not tell which are lost: give the model that it was made from"
        )
    return UnusedTensors(dict.fromkeys(left, path))


def check_values(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a model that holds another value of a tensor than its checkpoint stores, such as one tied to another.

    Raises:
        RelaxPruneError: naming the first.
    """
    changed = _changed(model, model.state_dict(), folder)
    if changed:  # a tensor that loading has converted may still have its name
        from transformers.core_model_loading import revert_weight_conversion

        changed = _changed(model, revert_weight_conversion(model, model.state_dict()), folder)
    if changed:
        raise RelaxPruneError(
            f"model folder {folder} stores {some(changed)} with other values than the model has once it is loaded, and "
            "they would be lost: make the checkpoint and its config.json agree (on which weights are tied, say)"
        )


def _changed(model: PreTrainedModel, state: Mapping[str, Tensor], folder: Path) -> list[str]:
    """Return the stored tensors that a model has under their names, but not with their bits."""
    found = []
    for file in weight_files(folder):
        with open_tensors(folder / file, weight_file(folder / file)) as tensors:
            for stored in tensors:
                name = next((form for form in forms(model, stored) if form in state), None)
                if name is not None and not same_bits(state[name], tensors.tensor(stored)):
                    found.append(stored)
    return found


def forms(model: PreTrainedModel, name: str) -> tuple[str, str, str]:
    """Return the names that a stored tensor may have in the model: as it is, or with the base model's prefix."""
    prefix = f"{model.base_model_prefix}."
    return name, prefix + name, name.removeprefix(prefix)


def saved_names(model: PreTrainedModel) -> set[str]:
    """Return the names under which the model's tensors are saved, which may be split, merged or renamed then."""
    from transformers.core_model_loading import revert_weight_conversion

    empty = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    return set(revert_weight_conversion(model, empty))


def _used_of(model: PreTrainedModel, entries: Mapping[str, TensorEntry]) -> list[str]:
    """Return the names of which the model would load the tensor, by whatever rule of renaming."""
    if not entries or not _reached(model, entries):
        return []
    return [name for name, entry in entries.items() if _reached(model, {name: entry})]


def _reached(model: PreTrainedModel, entries: Mapping[str, TensorEntry]) -> bool:
    """Say whether loading these tensors into an empty model of the same class fills a tensor of it."""
    return missing_of(model, entries) != missing_of(model, {})


def missing_of(model: PreTrainedModel, entries: Mapping[str, TensorEntry]) -> set[str] | None:
    """Return the tensors that a model lacks which is loaded from nothing but these; None where loading fails."""
    state = {
        name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta") for name, entry in entries.items()
    }
    with quiet():
        try:
            found: Any = type(model).from_pretrained(
                None, config=model.config, state_dict=state, device_map="meta", output_loading_info=True
            )
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError):
            return None
    missing: set[str] = set(found[1]["missing_keys"])
    return missing


def _refuse_clash(path: Path, names: Iterable[str]) -> None:
    """Raise RelaxPruneError where a weight file holds one of the names."""
    taken = sorted(set(_entries(path)) & set(names))
    if taken:
        raise RelaxPruneError(f"{weight_file(path)} holds {taken[0]!r}, the name of a tensor that the model has not")


def _entries(path: Path) -> Mapping[str, TensorEntry]:
    """Return what a weight file declares of its tensors."""
    return read_header(path, weight_file(path)).tensors
