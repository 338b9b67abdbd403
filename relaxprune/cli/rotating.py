"""Rotating a model from the command line: load, read text, rotate, write, reload and check."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relaxprune import RelaxPruneError, rotate_model
from relaxprune.models import LoadedModel, LoadOptions
from relaxprune.models.token_limits import check_tokenizer, try_window
from relaxprune.rotation import RotateOptions, RotateStep
from relaxprune.rotation.bases import rotated_bytes
from relaxprune.runs import RunNotes, software_versions, weights_sha256
from relaxprune.runs.disk_space import refuse_full_disk_for_rotation
from relaxprune.runs.rotated_model import write_rotated
from relaxprune.support import machine_line
from relaxprune.text import CalibrationOptions, SourcePart, TokenWindows, calibration_windows
from relaxprune.text.mixture import SELF

from .endings import command_line, door
from .interrupts import check
from .loading import load_model
from .prune.output import Output

_EVERY_S = 10.0  # between two lines of progress


@dataclass(frozen=True, kw_only=True)
class RotateJob:
    """One rotation from the command line.

    Attributes:
        model: hub id, folder, .gguf file or alias.
        options: what is rotated, and how.
        load: how the model is loaded.
        sources: what the text consists of.
        windows: how much of it.
        windows_at_once: how many windows go through the model together.
        shard_bytes: most that a weight file holds; None for 50 GB.
        output: prints messages.
        pruned_too: whether the pruned model is written to the same disk then.
    """

    model: str
    options: RotateOptions
    load: LoadOptions
    sources: tuple[SourcePart, ...]
    windows: CalibrationOptions
    windows_at_once: int
    shard_bytes: int | None
    output: Output
    pruned_too: bool = False

    def __post_init__(self) -> None:
        """Refuse what rounds more than once, or is not whole in memory.

        Raises:
            RelaxPruneError: naming the option.
        """
        if self.load.dtype != "auto":
            raise RelaxPruneError(
                f"a rotated model must be written in the dtype that its source stores, got --dtype {self.load.dtype}: "
                "leave it out"
            )
        if self.load.offload is not None:
            raise RelaxPruneError(
                f"a model must be whole in memory to be rotated, got --offload {self.load.offload}: rotate it first, "
                "with `relaxprune rotate`, then prune what that wrote"
            )


def write_rotation(job: RotateJob, folder: Path) -> dict[str, Any]:
    """Rotate a model and write it; return what ``rotation.json`` says of what it was made of and how."""
    job.output.say(f"loading {job.model}")
    with door():
        loaded = load_model(job.model, job.load)
    size = rotated_bytes(loaded.model, job.options)
    refuse_full_disk_for_rotation(folder, size, len(loaded.tokenizer or ()), job.pruned_too)
    windows = _tokens(job, loaded)
    facts = asked_facts(job) | {
        "source": {
            **{name: loaded.description[name] for name in ("kind", "commit", "package")},
            "name": job.model,
            "weights_sha256": weights_sha256(loaded.model),
        },
        "calibration": {"source": windows.source, "sha256": windows.sha256, "shape": list(windows.tokens.shape)},
        "software": software_versions(),
    }
    job.output.say(f"rotating on {windows.tokens.shape[0]} windows of {windows.tokens.shape[1]} tokens")
    batches = windows.tokens.split(job.windows_at_once)
    rotation = rotate_model(loaded.model, batches, options=job.options, on_step=_Lines(job.output))
    job.output.say(rotation)
    notes = RunNotes(
        command=command_line(),
        base_model=job.model if loaded.commit or not Path(job.model).exists() else Path(job.model).name,
        license=loaded.description.get("license"),
        machine=machine_line(),
    )
    facts["rotation"] = rotation.to_dict()
    with door():
        write_rotated(folder, loaded, facts, notes, job.shard_bytes)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    job.output.say(f"rotated model written to {folder}: reloaded, all tensors as meant; {size / 2**20:.1f} MiB")
    return facts


def asked_facts(job: RotateJob) -> dict[str, Any]:
    """Return what is asked for, which a rotated model must have been made by to be used again."""
    return {
        "asked": {
            "model": job.model,
            "revision": job.load.revision,
            **job.options.to_dict(),
            "sources": [[part.source, part.windows] for part in job.sources],
            "length": job.windows.length,
            "text_seed": job.windows.seed,
        }
    }


def _tokens(job: RotateJob, loaded: LoadedModel) -> TokenWindows:
    """Return the windows of text, which the model must be able to read."""
    if any(part.source != SELF for part in job.sources):
        check_tokenizer(loaded.model, loaded.tokenizer)
    with door():
        windows = calibration_windows(job.sources, loaded.tokenizer, job.windows, model=loaded.model)
    try_window(loaded.model, windows.tokens)
    return windows


class _Lines:
    """Says now and then how far the learning is."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last = time.monotonic()

    def __call__(self, step: RotateStep) -> None:
        """Take in one step."""
        check()  # a library may have swallowed the interruption
        if time.monotonic() - self._last >= _EVERY_S:
            self._last = time.monotonic()
            self._output.say(f"{step.part}: step {step.step}, loss {step.loss:.4f}")


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads, if a number is given."""
    if threads is not None:
        torch.set_num_threads(threads)
