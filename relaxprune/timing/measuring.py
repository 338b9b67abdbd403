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
from torch import Tensor

from relaxprune.conversion.checking import LogitDifference, check_weights, logit_difference, refuse_difference
from relaxprune.conversion.converting import convert_run
from relaxprune.conversion.own_code import refuse_own_code
from relaxprune.conversion.packed import own_tensors, torch_logits
from relaxprune.conversion.record import masks_sha256, read_conversion
from relaxprune.conversion.registry import make_target
from relaxprune.conversion.target import ConvertedModel, Target
from relaxprune.masks import describe
from relaxprune.models.layers import find_layers
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
        device: that both models were on.
        machine: its name if it has one, the processor, and versions.
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
    device: str
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
        RelaxPruneError: both are given, the folder was made of another run, the model has code of its own, or the two
            models' outputs differ by more than the form explains.
    """
    wanted = options or SpeedOptions()
    if to is not None and converted is not None:
        raise RelaxPruneError(f"give a target or a converted folder, got {to!r} and {str(converted)!r}")
    read = read_finished_run(run)
    refuse_own_code(read, "speed")
    target = make_target(to if to is not None else _fitting(read)) if converted is None else None
    stored = load_model(str(read.path)).model
    tokens = _prompt(stored, wanted)  # refuses a prompt that is too long before anything is converted
    with _folder(read, target, converted) as folder:
        return _measured(read, folder, stored, tokens, wanted)


def _measured(run: FinishedRun, folder: Path, stored: PreTrainedModel, tokens: Tensor, options: SpeedOptions) -> Speed:
    """Load both models, hold them against each other, and measure them."""
    record = read_conversion(folder)
    if record["masks_sha256"] != masks_sha256(run.path):
        raise RelaxPruneError(f"converted folder {str(folder)!r} was made of another run than {str(run.path)!r}")
    target, clock = make_target(record["target"]), Clock(options.place, options.repeats)
    dense = load_model(str(run.path), LoadOptions(dtype=record["dtype"], device=str(options.place))).model
    form = target.read(folder, clock.device)
    _hold_against(run, target, form, stored, dense)
    difference = logit_difference(form.logits, partial(torch_logits, dense), dense)
    refuse_difference(target, form, difference)
    layers = tuple(layer_times(dense, form, options.tokens, clock))
    dense_time, form_time = model_times(_subjects(dense, form), tokens, options.new_tokens, clock)
    return Speed(
        run=str(run.path),
        target=target.name,
        dtype=record["dtype"],
        device=str(clock.device),
        machine=_machine(clock.device),
        options=options,
        kernel=form.kernel,
        difference=difference,
        layers=layers,
        dense=dense_time,
        converted=form_time,
    )


def _machine(device: torch.device) -> str:
    """Return what timings depend on, the accelerator's own name first."""
    if device.type == "cpu":
        return machine_line()
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return machine_line() if name is None else f"{name(device)}, {machine_line()}"


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


def _subjects(dense: PreTrainedModel, form: ConvertedModel) -> tuple[Subject, Subject]:
    """Return the two models as they are measured; a form that was unpacked takes the room of the dense model."""
    dense_bytes = sum(tensor.nbytes for tensor in own_tensors(dense).values())
    return (
        Subject(partial(torch_logits, dense), dense, dense_bytes),
        Subject(form.logits, form.model, form.memory_bytes if form.kernel else dense_bytes),
    )


def _hold_against(
    run: FinishedRun, target: Target, form: ConvertedModel, stored: PreTrainedModel, dense: PreTrainedModel
) -> None:
    """Refuse converted weights that are not the run's, and give the dense model their rounded values."""
    if not form.weights:  # the same bits, as reading has checked
        return
    weights = {layer.parameter: layer.matrix() for layer in find_layers(stored)[0] if layer.parameter in run.masks}
    check_weights(target, form, {name: (weights[name], run.masks[name]) for name in form.weights if name in weights})
    for layer in find_layers(dense)[0]:
        if layer.parameter in form.weights:
            layer.stored.copy_(layer.as_stored(form.weights[layer.parameter]()))


def _prompt(model: PreTrainedModel, options: SpeedOptions) -> Tensor:
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
