"""Saving a pruned model, and checking from the files that what was written is what was meant.

The check is independent of the writing: the folder is loaded as any user would load it, and every tensor is compared
bit by bit. A weight that a mask prunes must be +0.0 (all bits zero, so not -0.0), every other weight must be unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.block_store import BlockStore
from relaxprune.residency.store import store_of
from relaxprune.support.tensor_bits import as_integers
from relaxprune.support.tensor_bits import same_bits as _same_bits

from .layers import find_layers
from .loaders import quiet
from .stored_dtypes import keep_stored_dtypes
from .streamed import DEFAULT_SHARD_BYTES, check_shards, write_shards, written_matrices
from .surplus import Surplus

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ReloadCheck:
    """What the reload of a saved model confirmed.

    Attributes:
        tensors: tensors compared bit by bit with the model in memory.
        pruned_layers: parameters that have a mask.
        pruned_weights: entries confirmed to be exactly +0.0, as their masks say.
        tied_groups: sets of names that share one tensor, in memory and after the reload alike.
        unused_tensors: tensors of the source that its model does not use, and that the files hold bit for bit.
        copied_files: files of the source beside its weights, compared byte by byte.
    """

    tensors: int
    pruned_layers: int
    pruned_weights: int
    tied_groups: int
    unused_tensors: int = 0
    copied_files: int = 0


def save_settings(model: PreTrainedModel, tokenizer: Any, staging: Path) -> None:
    """Save config, generation config and tokenizer (with its chat template) into ``staging``.

    Call it before any pruning: a setting that transformers refuses to save must not come up hours later.

    Raises:
        RelaxPruneError: if transformers refuses, with its reason.
    """
    try:
        with quiet():
            model.config.save_pretrained(staging)
            if model.can_generate():
                model.generation_config.save_pretrained(staging)
            if tokenizer is not None:
                tokenizer.save_pretrained(staging)
    except (ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise RelaxPruneError(f"the model's configuration or tokenizer cannot be saved: {reason}") from error


def save_weights(model: PreTrainedModel, folder: Path, surplus: Surplus, shard_bytes: int | None = None) -> None:
    """Save a model into ``folder``, with the tensors of its source that it does not use.

    Args:
        model: whole, or one whose blocks travel: then one block is in memory at a time.
        folder: an empty one.
        surplus: what the source holds beside the model.
        shard_bytes: most that a file holds, unless a single tensor is larger; None for 50 GB.
    """
    store = store_of(model)
    if isinstance(store, BlockStore):
        with store.restored():
            model.save_pretrained(folder, state_dict={})  # everything but weights
            write_shards(model, store, folder, shard_bytes or DEFAULT_SHARD_BYTES)
        return
    model.save_pretrained(folder, max_shard_size=shard_bytes or DEFAULT_SHARD_BYTES)
    surplus.tensors.append_to(folder)


def verify_saved_model(
    folder: Path, model: PreTrainedModel, masks: Mapping[str, Tensor], surplus: Surplus | None = None
) -> ReloadCheck:
    """Reload a saved model from disk and compare it with the one in memory and with the masks.

    Args:
        folder: where ``save_pretrained`` wrote.
        model: the pruned model that was saved.
        masks: parameter name to bool mask (rows, cols) as ``PrunableLayer.matrix`` has the weight, True = kept.
        surplus: what the folder must hold besides.

    Returns:
        What was confirmed.

    Raises:
        RelaxPruneError: naming the first tensor that is missing, differs, or is not +0.0 where its mask prunes.
    """
    surplus, store = surplus or Surplus(), store_of(model)
    counts = {"unused_tensors": len(surplus.tensors.files), "copied_files": len(surplus.files)}
    if isinstance(store, BlockStore):
        with store.restored():
            check_shards(model, store, folder)
        _refuse_lost(folder, surplus)
        zeros = [
            _confirm_zeros(name, matrix, masks[name]) for name, matrix in written_matrices(model, store, folder, masks)
        ]
        return ReloadCheck(len(model.state_dict()), len(masks), sum(zeros), len(tied_groups(model)), **counts)
    with quiet():
        found: Any = type(model).from_pretrained(
            folder, dtype="auto", local_files_only=True, output_loading_info=True, low_cpu_mem_usage=True
        )
    reloaded, info = found
    absent = sorted(map(str, {*info["missing_keys"], *info.get("mismatched_keys", ())}))
    if absent:
        raise RelaxPruneError(f"saved model {str(folder)!r} lacks {absent[0]!r} ({len(absent)} tensors in all)")
    _refuse_lost(folder, surplus)
    # Transformers casts what a mixed checkpoint stores; what counts is the bits in the files.
    keep_stored_dtypes(reloaded, folder, {*info["unexpected_keys"], *surplus.tensors.files})
    written, meant = reloaded.state_dict(), model.state_dict()
    for name, tensor in meant.items():
        if name not in written or not _same_bits(written[name], tensor):
            raise RelaxPruneError(f"saved model {str(folder)!r}: {name!r} is not what was written")
    matrices = {layer.parameter: layer.matrix() for layer in find_layers(reloaded)[0]}
    pruned = sum(_confirm_zeros(name, matrices.get(name), mask) for name, mask in masks.items())
    groups = tied_groups(model)
    if tied_groups(reloaded) != groups:
        raise RelaxPruneError(f"saved model {str(folder)!r} does not tie the weights that the model ties")
    return ReloadCheck(len(meant), len(masks), pruned, len(groups), **counts)


def _refuse_lost(folder: Path, surplus: Surplus) -> None:
    """Raise RelaxPruneError if a saved model lacks something that its source holds beside the model."""
    lost = [*surplus.tensors.differences(folder), *surplus.differing_files(folder)]
    if lost:
        raise RelaxPruneError(f"saved model {str(folder)!r} does not hold {lost[0]!r} as its source does")


def tied_groups(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the sets of parameter names that share one parameter, each sorted."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(tuple(sorted(group)) for group in names.values() if len(group) > 1)


def _confirm_zeros(name: str, weight: Tensor | None, mask: Tensor) -> int:
    """Return the number of pruned entries of ``weight`` (rows, cols), all of which must have no bit set."""
    if weight is None or weight.shape != mask.shape:
        found = "is no prunable parameter" if weight is None else f"has shape {tuple(weight.shape)}"
        raise RelaxPruneError(f"{name!r} {found} in the saved model, its mask has shape {tuple(mask.shape)}")
    pruned = ~mask
    wrong = int((as_integers(weight)[pruned] != 0).sum())
    if wrong:
        raise RelaxPruneError(f"{name!r} has {wrong} weights that its mask prunes and that are not +0.0 on disk")
    return int(pruned.sum())
