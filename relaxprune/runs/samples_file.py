"""The calibration windows that the model wrote for a run in progress."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from relaxprune.support.container import TensorFormat, metadata_json, read_container, write_container
from relaxprune.support.json_files import Maybe, misfit
from relaxprune.support.sentences import damaged
from relaxprune.text.kept_samples import ModelSamples

SAMPLES_NAME = "samples.safetensors"
SAMPLES_ADVICE = "delete it to have the model write them again"
_FORM = TensorFormat(kind="sample file", name="relaxprune.samples", keys=("sampling",))
_SHAPE = {"seed": int, "temperature": float, "start_token": Maybe(int)}


def save_samples(path: Path, samples: ModelSamples) -> None:
    """Write windows durably, and how the model was asked for them."""
    facts = {name: getattr(samples, name) for name in _SHAPE}
    write_container(path, _FORM, {"tokens": samples.tokens}, {"sampling": json.dumps(facts, sort_keys=True)})


def load_samples(path: Path) -> ModelSamples:
    """Read windows back.

    Raises:
        FileNotFoundError: there is no such file.
        RelaxPruneError: it is damaged; deleting it has the model write them again.
    """
    tensors, metadata = read_container(path, _FORM)
    facts = metadata_json(metadata, "sampling", path, _FORM)
    tokens = tensors.get("tokens")
    whole = tokens is not None and set(tensors) == {"tokens"} and tokens.dtype == torch.int64 and tokens.ndim == 2
    if tokens is None or not whole or misfit(facts, _SHAPE) or set(facts) != set(_SHAPE):
        raise damaged(_FORM.describe(path), "it does not hold windows of tokens", SAMPLES_ADVICE)
    return ModelSamples(tokens, **facts)
