"""Helpers of the loading tests: refusals, and edits of a saved tiny model."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from relaxprune.models.checkpoint import INDEX_FILE, SINGLE_FILE
from relaxprune.models.loading import load_model
from relaxprune.problems.errors import RelaxPruneError

UP = "model.layers.0.mlp.up_proj.weight"


def refused(source, match, options=None):
    """The one sentence with which a source is refused."""
    with pytest.raises(RelaxPruneError, match=match) as caught:
        load_model(str(source), options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder, change):
    """Apply ``change`` to the tensors of the single weight file."""
    tensors = load_file(folder / SINGLE_FILE)
    save_file(change(tensors), folder / SINGLE_FILE, {"format": "pt"})


def edit_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def shard(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    """Replace the single weight file by two shards and their index."""
    tensors = load_file(folder / SINGLE_FILE)
    (folder / SINGLE_FILE).unlink()
    halves = [dict(list(tensors.items())[part::2]) for part in range(2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name, {"format": "pt"})
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def redirect(folder, target):
    """Point one tensor of the index at ``target``."""
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"][UP] = target
    (folder / INDEX_FILE).write_text(json.dumps(index))
