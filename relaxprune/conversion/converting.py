"""``masks convert``: a run's folder in another form, complete and checked, or not there at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from relaxprune.models.checkpoint import weight_files
from relaxprune.models.layers import PrunableLayer, find_layers
from relaxprune.models.loading import LoadedModel, LoadOptions, load_model
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs.finished_run import FinishedRun, read_finished_run
from relaxprune.support.new_folder import new_folder
from relaxprune.support.tensor_bits import as_integers

from .checking import LogitDifference, check_weights, logit_difference, refuse_difference
from .own_code import refuse_own_code
from .packed import own_tensors, torch_logits
from .record import masks_sha256, write_conversion
from .registry import make_target
from .target import Job, LeftAsItIs, Target


@dataclass(frozen=True)
class Conversion:
    """What ``convert_run`` wrote and found.

    Attributes:
        target: its name.
        run: the run's folder, as it was given.
        masks_sha256: of the run's masks, by which a converted folder knows its run.
        dtype: that the model was cast to before its weights were converted.
        layers: pruned weights in the target's form, each compared with what the run stores.
        pruned: entries of them that masks prune, each confirmed to be 0 in the converted form.
        left: pruned weights that are stored as before, cast to ``dtype``, each with its reason.
        disk_bytes, dense_disk_bytes: of the weight files, converted and of the run.
        memory_bytes, dense_memory_bytes: of the weights in memory; converted where a kernel takes them as they are.
        dense_bits: of an entry of the dense model that the form is held against, in the form's own dtype.
        dense_form_bytes: of the weights in memory of that model, so that a cast is not credited to the form.
        difference: of the logits from those of the model as the run stores it: what the form's rounding costs.
        from_dense: of the logits from those of the same rounded weights in a dense model of ``dtype``.
        tolerance: the largest relative one of ``from_dense`` that is accepted.
        kernel: what multiplied in the check; "" if the weights were unpacked.
    """

    target: str
    run: str
    masks_sha256: str
    dtype: str
    layers: int
    pruned: int
    left: tuple[LeftAsItIs, ...]
    disk_bytes: int
    dense_disk_bytes: int
    memory_bytes: int
    dense_memory_bytes: int
    dense_bits: int
    dense_form_bytes: int
    difference: LogitDifference
    from_dense: LogitDifference
    tolerance: float
    kernel: str


def convert_run(run: str | Path, target: str, out: str | Path) -> Conversion:
    """Write a run's model in a target's form, and check it from the files.

    The converted folder is read back; every converted weight has to lie within the rounding of the form from what the
    run stores, every weight that a mask prunes has to be 0, and the logits on fixed random tokens have to be those of
    the same weights in a dense model.

    Args:
        run: a folder that ``relaxprune prune`` wrote.
        target: a name that ``target_names`` lists.
        out: new folder, outside ``run``. It appears when it is complete and checked.

    Raises:
        RelaxPruneError: an unknown target, a package that is missing, a run that is not finished, a model with
            code of its own, a target that takes none of its weights, or a check that fails; nothing is written then.
    """
    made = make_target(target)
    read = read_finished_run(run)
    refuse_own_code(read, "masks convert")
    with new_folder(Path(out), read.path) as staging:  # refuses before anything is loaded
        stored = load_model(str(read.path))
        job, left = _job(made, read, stored)
        made.write(job, staging)
        found = _checked(made, job, stored, left, staging)
        write_conversion(staging, asdict(found))
    return found


def _job(target: Target, run: FinishedRun, stored: LoadedModel) -> tuple[Job, list[LeftAsItIs]]:
    """Return what is converted, in the target's dtype, and what is left as it is.

    Raises:
        RelaxPruneError: nothing can be converted.
    """
    dtype = target.dtype(stored.model.dtype)
    name = str(dtype).removeprefix("torch.")
    model = stored.model if not target.kinds else load_model(str(run.path), LoadOptions(dtype=name)).model
    pruned = [layer for layer in find_layers(model)[0] if layer.parameter in run.masks]
    reasons = {layer.parameter: _reason(target, layer) for layer in pruned}
    taken = tuple(layer for layer in pruned if not reasons[layer.parameter])
    left = [LeftAsItIs(parameter, reason) for parameter, reason in reasons.items() if reason]
    if not taken:
        first = f"; of {left[0].parameter!r}: {left[0].reason}" if left else ""
        raise RelaxPruneError(f"target {target.name!r} takes none of the {len(pruned)} pruned weights{first}")
    return Job(run, model, taken), left


def _reason(target: Target, layer: PrunableLayer) -> str:
    """Say why a target leaves a layer as it is; "" if it takes it."""
    if target.kinds and layer.kind not in target.kinds:
        return f"its kind is {layer.kind}, and the target takes {' and '.join(target.kinds.values())}"
    return target.reason(layer)


def _checked(target: Target, job: Job, stored: LoadedModel, left: list[LeftAsItIs], folder: Path) -> Conversion:
    """Read the converted folder back, check it, and say what was found."""
    converted = target.read(folder, torch.device("cpu"))
    dense = {layer.parameter: layer.matrix() for layer in find_layers(stored.model)[0]}
    names = [layer.parameter for layer in job.layers]
    if converted.weights:
        pruned = check_weights(target, converted, {name: (dense[name], job.run.masks[name]) for name in names})
    else:  # the form is the same bits, which reading has checked
        pruned = _zeros(dense, job.run.masks)
    with_stored = partial(torch_logits, stored.model)
    difference = logit_difference(converted.logits, with_stored, stored.model)
    for layer in job.layers if converted.weights else ():
        layer.stored.copy_(layer.as_stored(converted.weights[layer.parameter]()))
    from_dense = logit_difference(converted.logits, partial(torch_logits, job.model), job.model)
    bits = min(8 * job.model.dtype.itemsize, target.dense_bits)
    return Conversion(
        target=target.name,
        run=str(job.run.path),
        masks_sha256=masks_sha256(job.run.path),
        dtype=str(job.model.dtype).removeprefix("torch."),
        layers=len(names),
        pruned=pruned,
        left=tuple(left),
        disk_bytes=sum(path.stat().st_size for path in target.files(folder)),
        dense_disk_bytes=sum((job.run.path / name).stat().st_size for name in weight_files(job.run.path)),
        memory_bytes=converted.memory_bytes,
        dense_memory_bytes=sum(tensor.nbytes for tensor in own_tensors(stored.model).values()),
        dense_bits=bits,
        dense_form_bytes=sum(_bytes_within(tensor, target.dense_bits) for tensor in own_tensors(job.model).values()),
        difference=difference,
        from_dense=from_dense,
        tolerance=refuse_difference(target, converted, from_dense),
        kernel=converted.kernel,
    )


def _bytes_within(tensor: Tensor, bits: int) -> int:
    """Return a tensor's bytes if no float of it took more than so many bits."""
    return min(tensor.nbytes, tensor.numel() * bits // 8) if tensor.is_floating_point() else tensor.nbytes


def _zeros(dense: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> int:
    """Return how many entries masks prune, all of which are +0.0."""
    pruned = 0
    for name in masks:
        mask = masks[name]
        if bool((as_integers(dense[name])[~mask] != 0).any()):
            raise RelaxPruneError(f"{name!r} is not +0.0 everywhere where its mask prunes: verify the run")
        pruned += int((~mask).sum())
    return pruned
