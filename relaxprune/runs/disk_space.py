"""The space on the disk that a run takes, estimated before any work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from relaxprune.pruning.plan import Plan
from relaxprune.support.outputs import refuse_full

from .run_progress import WORK_NAME

_LAYER_RECORD_BYTES = 4096  # numbers of a layer in its block's file, and again in relaxprune.json
_RUN_RECORD_BYTES = 65536  # settings, model card, manifest
_TOKEN_BYTES = 128  # of a tokenizer's files, for each token that it knows
_CERTIFICATE_WEIGHT_BYTES = 9  # of each entry of the layer: its point in float64, its mask in a byte


def refuse_full_disk(path: Path, plan: Plan, model_bytes: int, tokens: int) -> None:
    """Refuse a folder whose disk has not the space that a run takes, less what it has there already.

    Args:
        path: the run's folder.
        plan: what is pruned, and with which options.
        model_bytes: size of the model as it will be saved.
        tokens: how many tokens its tokenizer knows.

    Raises:
        RelaxPruneError: naming the folder, what is needed and what is free.
    """
    states = plan.memory.states if plan.residency.states == "disk" else 0
    needed = states + model_bytes + _TOKEN_BYTES * tokens + _RUN_RECORD_BYTES + sum(_layer_bytes(plan))
    needed -= sum(item.stat().st_size for item in (path / WORK_NAME).rglob("*") if item.is_file())
    refuse_full(path, needed, "the model, its masks and the records of the run")


def refuse_full_disk_for_rotation(path: Path, model_bytes: int, tokens: int, pruned_too: bool) -> None:
    """Refuse a folder whose disk has not the space for a rotated model, and for the pruned one beside it.

    Args:
        path: the rotated model's folder.
        model_bytes: size of the model as its rotation will save it.
        tokens: how many tokens its tokenizer knows.
        pruned_too: whether the pruned model, and its masks, follow on the same disk.

    Raises:
        RelaxPruneError: naming the folder, what is needed and what is free.
    """
    each = model_bytes + _TOKEN_BYTES * tokens + _RUN_RECORD_BYTES
    what = "the rotated model and the pruned one" if pruned_too else "the rotated model"
    refuse_full(path, each * (1 + pruned_too), what)


def _layer_bytes(plan: Plan) -> Iterator[int]:
    """Yield what each layer takes besides its place in the model: masks twice, new weights, a certificate, records."""
    options = plan.request.options
    for layer in plan.weights:
        rows, cols = layer.shape
        rewritten = options.whole_model and options.new_values
        weights = rows * cols * layer.weight.element_size() * (options.block_values + rewritten)
        certificate = _CERTIFICATE_WEIGHT_BYTES * rows * cols if options.certify is not None else 0
        yield 2 * rows * -(-cols // 8) + weights + certificate + 2 * _LAYER_RECORD_BYTES
