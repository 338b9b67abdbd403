"""``relaxprune speed``: a run's dense model against its converted form, on one device, on the same inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from relaxprune.conversion.checking import LogitDifference, check_weights, logit_difference, refuse_difference
from relaxprune.conversion.converting import convert_run
from relaxprune.conversion.packed import own_tensors, torch_logits
from relaxprune.conversion.record import masks_sha256, read_conversion
from relaxprune.conversion.registry import make_target
from relaxprune.conversion.target import ConvertedModel, Target
from relaxprune.masks import describe
from relaxprune.models.layers import PrunableLayer, find_layers
from relaxprune.models.loading import LoadOptions, load_model
from relaxprune.models.token_limits import positions, vocabulary
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs.finished_run import FinishedRun, read_finished_run
from relaxprune.support.machine import machine_line

from .clock import Clock
from .layer_times import LayerTime, layer_times
from .model_times import ModelTime, Subject, model_times
from .options import SpeedOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TWO_OF_FOUR = ("1:4", "2:4")


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        run: the run's folder.
        target: the form's name.
        dtype: of the dense model.
        machine: the processor, device and versions.
        options: what was asked for.
        kernel: what multiplied with the converted weights; "" if the device has nothing for them, and they were
            unpacked: the converted model is a dense one then.
        difference: of the logits from those of the same weights in a dense model, on this device.
        layers: one of each shape; empty if the runtime has no layers that can be called by themselves.
        dense, converted: the whole models.
    """

    run: str
    target: str
    dtype: str
    machine: str
    options: SpeedOptions
    kernel: str
    difference: LogitDifference
    layers: tuple[LayerTime, ...]
    dense: ModelTime
    converted: ModelTime

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"schema_version": 1, **asdict(self)}


def measure_speed(
    run: str | Path,
    options: SpeedOptions | None = None,
    *,
    to: str | None = None,
    converted: str | Path | None = None,
) -> Speed:
    """Measure a run's dense model and its converted form on one device.

    Args:
        run: a folder that ``relaxprune prune`` wrote.
        options: what is measured.
        to: the target to convert to, into a temporary folder; by default semi-structured for 2:4, else macko.
        converted: a folder that ``masks convert`` made of the run, in place of ``to``.

    Raises:
        RelaxPruneError: both are given, the folder was made of another run, or the two models' outputs differ by more
            than the form explains.
    """
    wanted = options or SpeedOptions()
    if to is not None and converted is not None:
        raise RelaxPruneError(f"give a target or a converted folder, got {to!r} and {str(converted)!r}")
    read = read_finished_run(run)
    target = make_target(to if to is not None else _fitting(read)) if converted is None else None
    with _folder(read, target, converted) as folder:
        record = read_conversion(folder)
        if record["masks_sha256"] != masks_sha256(read.path):
            raise RelaxPruneError(f"converted folder {str(folder)!r} was made of another run than {str(run)!r}")
        return _measured(read, make_target(record["target"]), folder, record["dtype"], wanted)


def _fitting(run: FinishedRun) -> str:
    """Return the target that suits a run's zeros."""
    name = next(iter(run.masks), None)
    pattern = "" if name is None else describe(name, run.masks[name]).pattern
    return "semi-structured" if pattern in _TWO_OF_FOUR else "macko"


@contextmanager
def _folder(run: FinishedRun, target: Target | None, converted: str | Path | None) -> Iterator[Path]:
    """Yield the converted folder that is there, or a temporary one."""
    if converted is not None:
        yield Path(converted)
        return
    with tempfile.TemporaryDirectory(prefix="relaxprune-") as place:
        out = Path(place) / "converted"
        convert_run(run.path, target.name if target is not None else "", out)
        yield out


def _measured(run: FinishedRun, target: Target, folder: Path, dtype: str, options: SpeedOptions) -> Speed:
    """Load both models, hold them against each other, and measure them."""
    device = torch.device(options.device)
    stored = load_model(str(run.path)).model
    dense = load_model(str(run.path), LoadOptions(dtype=dtype, device=options.device)).model
    converted = target.read(folder, device)
    own = {layer.parameter: layer for layer in find_layers(dense)[0]}
    _hold_against(run, target, converted, stored, own)
    difference = logit_difference(converted.logits, partial(torch_logits, dense), dense)
    refuse_difference(target, converted, difference)
    del stored
    clock = Clock(device, options.repeats)
    dense_bytes = sum(tensor.nbytes for tensor in own_tensors(dense).values())
    subjects = (
        Subject(partial(torch_logits, dense), dense, dense_bytes),
        Subject(converted.logits, converted.model, converted.memory_bytes if converted.kernel else dense_bytes),
    )
    layers = tuple(layer_times(dense, converted, options.tokens, clock))
    dense_time, converted_time = model_times(subjects, _prompt(dense, options), options.new_tokens, clock)
    return Speed(
        run=str(run.path),
        target=target.name,
        dtype=dtype,
        machine=machine_line(),
        options=options,
        kernel=converted.kernel,
        difference=difference,
        layers=layers,
        dense=dense_time,
        converted=converted_time,
    )


def _hold_against(
    run: FinishedRun, target: Target, converted: ConvertedModel, stored: PreTrainedModel, own: dict[str, PrunableLayer]
) -> None:
    """Refuse converted weights that are not the run's, and give the dense model their rounded values."""
    if not converted.weights:  # the same bits, as reading has checked
        return
    weights = {layer.parameter: layer.matrix() for layer in find_layers(stored)[0] if layer.parameter in run.masks}
    taken = {name: (weights[name], run.masks[name]) for name in converted.weights if name in weights}
    check_weights(target, converted, taken)
    for name in taken:
        own[name].stored.copy_(own[name].as_stored(converted.weights[name]()))


def _prompt(model: PreTrainedModel, options: SpeedOptions) -> torch.Tensor:
    """Return the tokens of the prompt, (1, prompt), which the model can read with those that follow.

    Raises:
        RelaxPruneError: they are more than the model has positions for.
    """
    known = positions(model)
    if known is not None and options.prompt + options.new_tokens > known:
        raise RelaxPruneError(
            f"prompt and new_tokens are {options.prompt} and {options.new_tokens}, and the model has {known} positions"
        )
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary(model) or 2, (1, options.prompt), generator=generator)
