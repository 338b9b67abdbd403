"""One pruning run from the command line: check everything first, then load, plan, prune, write, reload and check."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from relaxprune.models.layers import apply_masks
from relaxprune.models.loading import LoadedModel
from relaxprune.models.stored_dtypes import FLOAT_DTYPES
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.channels.reorder import apply_permutations
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.plan import PrunePlan, Survey, survey_model
from relaxprune.pruning.planning import with_prediction
from relaxprune.pruning.prediction import Trial
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.runs.fingerprint import Fingerprint, plain_values, software_versions, weights_sha256
from relaxprune.runs.run_folder import RunFolder
from relaxprune.runs.run_record import RunNotes
from relaxprune.support.machine import machine_line, memory_line
from relaxprune.support.memory import peak_memory_bytes
from relaxprune.text.windows import TokenWindows, calibration_windows

from .endings import door, tell
from .loading import load_model, load_options
from .notices import report_notices
from .progress import duration
from .prune_request import PruneRequest as PruneRequest
from .prune_request import windows_at_once

# Of the loaded model's description: what decides which weights were read, and by which code.
_MODEL_FACTS = ("kind", "package", "revision", "commit", "checkpoint_dtypes", "trust_remote_code")


def run_prune(request: PruneRequest) -> int:
    """Prune a model as asked and return the exit code.

    Everything that can be checked without the model is checked before it is loaded, and everything that can be checked
    with it before the first block is solved.

    Raises:
        RelaxPruneError: for any bad input; then no output folder is left behind unless blocks are finished in it.
    """
    request.check()
    if not request.run.plan:
        RunFolder.refuse_occupied(request.out, request.run.resume)
    if request.run.threads is not None:
        torch.set_num_threads(request.run.threads)
    output = request.run.output
    output.say(f"loading {request.model}")
    with door():
        loaded = load_model(request.model, load_options(request.loading))
    refuse_rounding(request, loaded)
    survey = survey_request(request, loaded)
    windows = calibration_tokens(request, loaded)
    if request.run.plan:
        output.result(predicted_plan(request, loaded, survey, windows))
        return 0
    folder = open_folder(request, loaded, windows)
    if folder.finished:
        files = folder.verify_files()
        output.result(f"{folder.path} holds this run, finished; its {files} files are as they were written")
        return tell(folder.notices)
    if folder.solved_blocks:
        output.say(f"{folder.path} holds {len(folder.solved_blocks)} finished blocks; going on after them")
    count, length = windows.tokens.shape
    with abandoning(folder):
        plan = predicted_plan(request, loaded, survey, windows)
    output.say(plan.prediction)
    output.say(f"{count} calibration windows of {length} tokens run through the model first")
    if request.target.allocation.measures:
        output.say("then a pass over the dense model decides how much of each layer is pruned")
    report = prune_loaded(request, loaded, windows, plan, folder)
    output.say(report)
    notices = finish_folder(request, folder, loaded, report)
    output.say(f"{machine_line()}; {memory_line()}")
    output.say(f"before the run, {plan.prediction}")
    return tell(notices)


def left_behind(out: Path | None) -> str:
    """Say what an interrupted run leaves in its output folder."""
    if out is None or not (folder := RunFolder(out, {})).begun:
        return "nothing is written"
    if folder.finished:
        return f"the run in {out} is finished"
    return f"{len(folder.solved_blocks)} finished blocks are kept in {out}, and --resume continues from them"


def refuse_rounding(request: PruneRequest, loaded: LoadedModel) -> None:
    """Refuse new weights that would be rounded when they are saved: what is reported of them would not hold.

    Raises:
        RelaxPruneError: ``--refit`` with a ``--dtype`` of which the source stores no weights.
    """
    stored = {str(FLOAT_DTYPES[name]) for name in loaded.description["checkpoint_dtypes"] if name in FLOAT_DTYPES}
    computed = loaded.description["dtype"]
    if request.layers.refit and request.loading.dtype != "auto" and stored - {f"torch.{computed}"}:
        raise RelaxPruneError(
            f"--refit must compute in the dtype that the model stores, {', '.join(sorted(stored))}, got --dtype "
            f"{computed}: leave it out (Grams and solvers use float32 and float64 in any case)"
        )


def survey_request(request: PruneRequest, loaded: LoadedModel) -> Survey:
    """Plan the run, and refuse layers that the solver or the pattern cannot take."""
    tokens = request.calibration.windows * request.calibration.length
    return survey_model(loaded.model, request.target, request.options, tokens, request.solver)


def predicted_plan(request: PruneRequest, loaded: LoadedModel, survey: Survey, windows: TokenWindows) -> PrunePlan:
    """Try parts of the run for a few seconds, and return its plan with the time and the memory that it will take."""
    trial = Trial(request.target, request.solver, request.options)
    return with_prediction(loaded.model, survey, trial, windows.tokens.split(batch_windows(windows)))


def calibration_tokens(request: PruneRequest, loaded: LoadedModel) -> TokenWindows:
    """Take the calibration windows that were asked for."""
    with door():
        return calibration_windows(
            request.calibration.calibration, loaded.tokenizer, request.windows, model=loaded.model
        )


def prune_loaded(
    request: PruneRequest,
    loaded: LoadedModel,
    windows: TokenWindows,
    plan: PrunePlan,
    folder: RunFolder | None,
    title: str = "pruning",
) -> PruneReport:
    """Prune a loaded model in place, with progress on stdout and finished blocks recorded in ``folder``."""
    with abandoning(folder), request.run.output.progress(plan, title) as progress:
        return prune_model(
            loaded.model,
            windows.tokens.split(batch_windows(windows)),
            **request.amount,
            solver=request.solver_name,
            options=request.options,
            recorder=folder,
            on_event=progress,
            **request.solver_options,
        )


@contextmanager
def abandoning(folder: RunFolder | None) -> Iterator[None]:
    """Leave nothing of a run in its folder that bad input or the user ends inside before its first block."""
    try:
        yield
    except (RelaxPruneError, KeyboardInterrupt):
        if folder is not None:
            folder.abandon()
        raise


def batch_windows(windows: TokenWindows) -> int:
    """Return how many windows go through the model at once."""
    return windows_at_once(windows.tokens.shape[1])


def open_folder(request: PruneRequest, loaded: LoadedModel, windows: TokenWindows) -> RunFolder:
    """Start the run's folder, or continue the one that is there."""
    fingerprint = run_fingerprint(request, loaded, windows)
    with door():
        return RunFolder.open(request.out, loaded.model, loaded.tokenizer, fingerprint, resume=request.run.resume)


def run_fingerprint(request: PruneRequest, loaded: LoadedModel, windows: TokenWindows) -> Fingerprint:
    """Collect everything that the masks depend on."""
    model = loaded.model
    return Fingerprint(
        model={
            "source": request.model,
            **{name: loaded.description[name] for name in _MODEL_FACTS},
            "class": type(model).__name__,
            "weights_sha256": weights_sha256(model),
            "dtype": loaded.description["dtype"],
            "attention": model.config._attn_implementation,
        },
        calibration={
            "source": windows.source,
            "sha256": windows.sha256,
            "windows": windows.tokens.shape[0],
            "length": windows.tokens.shape[1],
            "batch_windows": batch_windows(windows),
            "description": plain_values(windows.description),
        },
        settings={
            "solver": request.solver_name,
            "solver_options": plain_values(asdict(request.solver)),
            "polytope": request.target.to_dict(),
            **plain_values(asdict(request.options)),
            "device": str(model.device),
            "threads": torch.get_num_threads(),
        },
        software=software_versions(request.distributions),
    )


def finish_folder(
    request: PruneRequest, folder: RunFolder, loaded: LoadedModel, report: PruneReport
) -> tuple[str, ...]:
    """Write the pruned model, reload and check it; returns the notices that the user must see."""
    notices = tuple(report_notices(report))
    notes = RunNotes(
        command=shlex.join(["relaxprune", *sys.argv[1:]]),
        base_model=request.model if loaded.commit or not Path(request.model).exists() else Path(request.model).name,
        license=loaded.description.get("license"),
        notices=notices,
        machine=machine_line(),
        peak_memory_bytes=peak_memory_bytes(),
    )
    weights = folder.fingerprint["model"]["weights_sha256"]
    checked = folder.finish(in_stored_dtype(request, loaded, report, weights), report, notes)
    request.run.output.result(
        f"written to {folder.path}: reloaded, {checked.tensors} tensors as meant, {checked.pruned_weights} weights of "
        f"{checked.pruned_layers} layers exactly zero; pruned in {duration(report.seconds['total'])}",
        folder=str(folder.path),
        pruned_weights=checked.pruned_weights,
        pruned_layers=checked.pruned_layers,
        mean_relative_error=report.mean_relative_error,
        mean_wanda_ratio=report.mean_wanda_ratio,
        notices=list(notices),
    )
    return notices


def in_stored_dtype(request: PruneRequest, loaded: LoadedModel, report: PruneReport, weights: str) -> Any:
    """Return the pruned model in the dtype that the source stores.

    ``--dtype`` only sets the dtype of the computation: kept weights must stay those of the source, bit for bit. So the
    source is loaded again, as it is stored, and gets the same order of channels, masks and new values.

    Raises:
        RelaxPruneError: the source has changed, so that ``weights`` is not the SHA-256 of what is loaded again.
    """
    if request.loading.dtype == "auto":
        return loaded.model
    # A branch may have moved since: the commit says what was pruned.
    same = replace(request.loading, dtype="auto", revision=loaded.commit or request.loading.revision)
    stored = load_model(request.model, load_options(same))
    computed = {name: tensor.dtype for name, tensor in loaded.model.state_dict().items()}
    if (found := weights_sha256(stored.model, computed)) != weights:
        raise RelaxPruneError(
            f"model {request.model!r} must keep its weights until the pruned model is saved, got SHA-256 {found} now, "
            f"{weights} when it was pruned: restore it and continue with --resume"
        )
    apply_permutations(stored.model, report.permutations)
    apply_masks(stored.model, report.masks, report.weights)
    return stored.model
