"""Saving a model whose blocks travel: tensor by tensor, in shards, and checking the files in the same way.

The files hold the tensors of the source under their names. Those of a pruned block come out as its record says, all
others bit for bit as they went in, among them those that the model does not use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.block_store import BlockStore
from relaxprune.support.container import write_data
from relaxprune.support.durable import durable_path, write_json
from relaxprune.support.tensor_bits import same_bits
from relaxprune.support.tensor_header import DTYPES, header_bytes

from .checkpoint import INDEX_FILE, weight_files
from .layers import find_layers
from .unused_tensors import missing_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_SHARD_BYTES = 50 * 10**9  # as transformers saves models
_PATTERN = "model{suffix}.safetensors"


def write_shards(model: PreTrainedModel, store: BlockStore, folder: Path, shard_bytes: int) -> None:
    """Write the tensors of a checkpoint as they are now, each once, in shards of at most ``shard_bytes``.

    Raises:
        OSError: a file cannot be written.
        RelaxPruneError: the source became another one.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    entries = store.shards.entries
    split = split_state_dict_into_shards_factory(
        dict(entries),
        get_storage_size=lambda entry: entry.end - entry.start,
        filename_pattern=_PATTERN,
        max_shard_size=shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        shapes = {
            name: torch.empty(entries[name].shape, dtype=DTYPES[entries[name].dtype], device="meta") for name in names
        }
        header, order = header_bytes(shapes, {"format": "pt"})
        with durable_path(folder / file) as scratch, scratch.open("wb") as out:
            write_data(out, header, map(store.current, order))
    if split.is_sharded:
        facts = {"total_parameters": model.num_parameters(), **split.metadata}
        write_json(folder / INDEX_FILE, {"metadata": facts, "weight_map": split.tensor_to_filename})


def check_shards(model: PreTrainedModel, store: BlockStore, folder: Path) -> None:
    """Compare the files that were written with the tensors as they are now, one by one.

    Raises:
        RelaxPruneError: naming the first tensor that is missing or differs.
    """
    written = store.shards.like([folder / name for name in weight_files(folder)])
    missing = missing_of(model, written.entries)
    if missing is None or missing:
        lacking = "tensors" if missing is None else repr(min(missing))
        raise RelaxPruneError(f"saved model {str(folder)!r} lacks {lacking}, and cannot be loaded")
    for name in store.shards:
        if name not in written.entries or not same_bits(written.read(name), store.current(name)):
            raise RelaxPruneError(f"saved model {str(folder)!r}: {name!r} is not what was written")


def written_matrices(
    model: PreTrainedModel, store: BlockStore, folder: Path, parameters: Mapping[str, object]
) -> Iterator[tuple[str, Tensor | None]]:
    """Yield parameters of a model, each with its matrix (rows, cols) in the files, None for none."""
    written = store.shards.like([folder / name for name in weight_files(folder)])
    layers = {layer.parameter: layer for layer in find_layers(model)[0]}
    held, stored = "", torch.empty(0)  # experts of one parameter come one after the other
    for name in parameters:
        layer = layers.get(name)
        if layer is None:
            yield name, None
            continue
        if store.name_of(layer.weight) != held:
            held = store.name_of(layer.weight)
            stored = written.read(held)
        yield name, layer.as_matrix(stored if layer.expert is None else stored[layer.expert])
