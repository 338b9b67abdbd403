"""Checking a finished run against its source: what was not pruned is the source's, what was is what its masks say.

Nothing that the run has reported is taken for granted: the source and the result are loaded anew and compared bit by
bit, masks are counted against the set that was asked for, and the folder against its own list of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.models.layers import find_layers
from relaxprune.models.loading import LoadedModel, LoadOptions, load_model
from relaxprune.models.unused_tensors import UnusedTensors
from relaxprune.options.prune_options import new_values
from relaxprune.options.target import Decided, Target
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.channels.permutation import Permutation
from relaxprune.pruning.channels.reorder import apply_permutations
from relaxprune.residency.store import store_of
from relaxprune.support.durable import is_unchanged
from relaxprune.support.json_files import is_sealed
from relaxprune.support.tensor_bits import as_integers, same_bits

from .dense_folder import DENSE_NAME
from .evaluation_file import EVALUATION_NAME
from .finished_run import FinishedRun, read_finished_run
from .run_record import RECORD_NAME, UNSEALED, read_record
from .source_weights import is_source

# Written into a run's folder after it is finished.
_LATER = (RECORD_NAME, EVALUATION_NAME, "report.html", "report.json")


@dataclass(frozen=True)
class RunVerification:
    """What was found of a run.

    Attributes:
        folder: the run's folder.
        source: what it was compared with.
        differences: one clause for each thing that is not as it should be, the first one first.
        files: files compared with their checksums.
        tensors: tensors of the model compared with the source's, bit by bit.
        layers: those of them with a mask, which fits what was asked for.
        pruned: entries that are exactly +0.0, as the masks say.
        reselected: how many kept weights the run exchanged by the whole model, after all layers were solved.
    """

    folder: Path
    source: str
    differences: tuple[str, ...]
    files: int
    tensors: int = 0
    layers: int = 0
    pruned: int = 0
    reselected: int = 0

    def __str__(self) -> str:
        """Say it in one line."""
        if self.differences:
            more = len(self.differences) - 1
            rest = f"; {more} more {'difference' if more == 1 else 'differences'}" if more else ""
            return f"{self.folder} is not what the run made of {self.source}: {self.differences[0]}{rest}"
        return (
            f"{self.folder}: {self.files} files as they were written; {self.tensors} tensors are those of "
            f"{self.source}, {self.layers} of them masked as asked, {self.pruned} weights exactly zero{self._before}"
        )

    @property
    def _before(self) -> str:
        """Say which numbers are of other masks than these, if any are."""
        if not self.reselected:
            return ""
        return (
            f"; errors and gaps of layers are of the masks before --reselect exchanged {self.reselected} weights, "
            "their bounds hold for all masks"
        )


def verify_run(
    path: str | Path,
    source: str | None = None,
    *,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
    offload: str | None = None,
) -> RunVerification:
    """Compare a finished run with its source.

    Args:
        path: the run's folder.
        source: the model that was pruned, as ``load_model`` takes it; None for the one that the folder names, of the
            commit that it names.
        cache_dir: the hub cache; None for its usual place.
        trust_remote_code: run Python files that come with the model, where it needs them.
        offload: "disk" to hold one block of each model at a time; None to load both whole.

    Raises:
        RelaxPruneError: the folder holds no finished run, or the source is not there.
    """
    folder = Path(path)
    record = read_record(folder) if (folder / RECORD_NAME).is_file() else read_finished_run(folder).record
    named = source or _source_name(record, folder)
    differing = list(_differing_files(folder, record))
    if differing:  # what a damaged file holds would be told once more
        return RunVerification(folder, named, tuple(differing), len(record["files"]))
    run = read_finished_run(folder)
    options = LoadOptions(cache_dir=cache_dir, trust_remote_code=trust_remote_code, offload=offload)
    load = partial(_load_source, record, source, named)
    dense = load(options)
    others = list(_other_weights(record, lambda dtype: load(replace(options, dtype=dtype)), dense))
    result = load_model(str(folder.resolve()), LoadOptions(trust_remote_code=trust_remote_code, offload=offload))
    _reorder(dense.model, [Permutation.from_dict(item) for item in record["report"].get("permutations") or ()])
    found = [
        *_wrong_masks(run),
        *_wrong_tensors(run, dense, result),
        *_lost(dense, folder),
        *others,
        *_unsealed(record),
    ]
    pruned = sum(int((~mask).sum()) for mask in run.masks.values())
    moved = (record["report"].get("reselection") or {}).get("moved", {})
    return RunVerification(
        folder=folder,
        source=named,
        differences=tuple(found),
        files=len(record["files"]),
        tensors=len(dense.model.state_dict()),
        layers=len(run.masks),
        pruned=pruned,
        reselected=sum(moved.values()),
    )


def _reorder(model: nn.Module, permutations: Sequence[Permutation]) -> None:
    """Reorder the channels of a dense model as the run did, block by block."""
    store = store_of(model)
    for block, group in groupby(permutations, key=lambda item: item.block):
        redo = partial(apply_permutations, model, list(group))
        with store.resident(block):
            redo()
        store.finish(block, redo)


def _source_name(record: Mapping[str, Any], folder: Path) -> str:
    """Return what a run pruned: the model that it names, or that model rotated, which lies in the run's folder."""
    facts = record["fingerprint"]["model"]
    return str(folder / DENSE_NAME) if facts.get("rotation") else str(facts["source"])


def _load_source(record: Mapping[str, Any], source: str | None, name: str, options: LoadOptions) -> LoadedModel:
    """Load the model that was pruned, as it is stored; ``source`` is what the caller named, if anything."""
    facts = record["fingerprint"]["model"]
    commit = facts.get("commit") if facts.get("kind") == "hub" and source is None else None
    try:
        found = load_model(name, replace(options, revision=commit))
    except (RelaxPruneError, OSError) as error:
        raise RelaxPruneError(
            f"the source of the run, {name!r}, cannot be read: {error}; give it as --source"
        ) from error
    wanted, got = facts.get("package"), found.description["package"]
    if source is None and wanted != got:
        raise RelaxPruneError(
            f"the source of the run is of the package {wanted}, and {got} is installed: run `pip install {wanted}`"
        )
    return found


def _other_weights(record: Mapping[str, Any], load: Callable[[str], LoadedModel], dense: LoadedModel) -> Iterator[str]:
    """Yield that the source has other weights than were pruned: the result may hold nothing of those that changed."""
    if not is_source(record, dense, load):
        wanted = record["fingerprint"]["model"]["weights_sha256"]
        yield f"the source's weights are not those of SHA-256 {wanted}, which were pruned"


def _differing_files(folder: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the files that the record lists, and files that it does not list."""
    listed = record["files"]
    for name, facts in listed.items():
        path = folder / name
        if not path.is_file():
            yield f"file {name!r} is missing"
        elif not is_unchanged(path, facts):
            yield f"file {name!r} is not the one that was written"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in listed and name not in _LATER:
            yield f"file {name!r} is none of the run's"


def _unsealed(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield that the record is not the one that was written."""
    if not is_sealed(record):
        yield f"file {RECORD_NAME!r} was changed: {UNSEALED}"


def _wrong_masks(run: FinishedRun) -> Iterator[str]:
    """Yield the masks that are not in the set that was asked for, or not what is reported of them."""
    names = {layer.parameter for layer in run.layers}
    yield from (f"the mask of {name!r} is of no reported layer" for name in run.masks if name not in names)
    decided = _decided(run)
    for layer in run.layers:
        mask = run.masks[layer.parameter]
        kept = int(mask.sum())
        if abs((1 - kept / mask.numel()) - layer.sparsity) > 1e-9:
            yield f"the mask of {layer.parameter!r} keeps {kept} of {mask.numel()}, unlike what is reported of it"
        elif not decided.polytope_of(layer.name, (layer.rows, layer.cols)).contains(mask):
            yield f"the mask of {layer.parameter!r} is not in the set that was asked for"


def _decided(run: FinishedRun) -> Decided:
    """Return the set of masks of every layer, of what a run's settings say was asked for."""
    target = Target.from_dict(run.settings.get("polytope") or {})
    if not target.sharing.measures:
        return Decided(target)
    return Decided(target, {layer.name: round(layer.requested_sparsity * layer.cols) for layer in run.layers})


def _wrong_tensors(run: FinishedRun, dense: LoadedModel, result: LoadedModel) -> Iterator[str]:
    """Yield the tensors of the result that are not the source's, or not as their masks say."""
    before, after = (found.model.state_dict(keep_vars=True) for found in (dense, result))
    was, now = store_of(dense.model).values, store_of(result.model).values
    yield from (f"tensor {name!r} is missing" for name in before if name not in after)
    yield from (f"tensor {name!r} is not of the source" for name in after if name not in before)
    layers = {layer.parameter: layer for layer in find_layers(dense.model)[0]}
    results = {layer.parameter: layer for layer in find_layers(result.model)[0]}
    moves = new_values(run.settings)
    pruned = {id(layers[name].weight) for name in run.masks if name in layers}
    for name in run.masks:
        if name not in layers or name not in results or layers[name].shape != tuple(run.masks.shapes[name]):
            yield f"{name!r}, which has a mask, is no matrix of that shape in the source and the result"
        else:
            wrong = _wrong_entries(layers[name].matrix(), results[name].matrix(), run.masks[name], moves)
            if wrong:
                yield f"{wrong} weights of {name!r} are not what its mask makes of the source's"
    whole = [layer for name, layer in layers.items() if id(layer.weight) in pruned and name not in run.masks]
    for layer in whole:  # experts beside others of the same parameter that are pruned
        if layer.parameter not in results or not same_bits(layer.stored, results[layer.parameter].stored):
            yield f"tensor {layer.parameter!r} is not the source's, though it was not pruned"
    held = {name for name, tensor in before.items() if id(tensor) in pruned}
    for name in before:
        if name in after and name not in held and not same_bits(was(before[name]), now(after[name])):
            yield f"tensor {name!r} is not the source's, though it was not pruned"


def _wrong_entries(dense: Tensor, pruned: Tensor, mask: Tensor, moves: bool) -> int:
    """Return how many entries are neither +0.0 where they are pruned nor the source's where they are kept."""
    if dense.dtype != pruned.dtype:
        return mask.numel()
    bits = as_integers(pruned)
    wrong = (bits != 0) & ~mask
    wrong |= (~torch.isfinite(pruned.cpu()) if moves else bits != as_integers(dense)) & mask
    return int(wrong.sum())


def _lost(dense: LoadedModel, folder: Path) -> Iterator[str]:
    """Yield what the source holds beside its model and the folder does not."""
    tensors: UnusedTensors = dense.surplus.tensors
    for name in tensors.differences(folder):
        yield f"tensor {name!r}, which the model does not use, is missing or is not the source's"
    for name in dense.surplus.differing_files(folder):
        yield f"file {name!r} is missing or is not the source's"
