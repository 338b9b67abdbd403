"""The output folder of a run from the command line: begun with what decides the result, ended with the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from relaxprune import RelaxPruneError, apply_masks
from relaxprune.costs.memory import parameter_bytes
from relaxprune.models import FLOAT_DTYPES, LoadedModel
from relaxprune.pruning import Plan, PruneReport, apply_permutations
from relaxprune.residency.store import store_of
from relaxprune.runs import Fingerprint, RunFolder, RunNotes, plain_values, software_versions, weights_sha256
from relaxprune.runs.disk_space import refuse_full_disk
from relaxprune.runs.run_record import read_sealed_record
from relaxprune.support import machine_line, peak_memory_bytes
from relaxprune.text import TokenWindows
from relaxprune.text.kept_samples import ModelSamples
from relaxprune.text.mixture import SELF
from relaxprune.text.model_samples import Sampler, random_windows
from relaxprune.text.token_windows import tokens_sha256

from ..endings import command_line
from ..loading import load_model
from ..notices import report_notices
from .job import PruneJob
from .progress import duration

# Of the loaded model's description: what decides which weights were read, and by which code.
_MODEL_FACTS = (
    "kind",
    "package",
    "revision",
    "commit",
    "checkpoint_dtypes",
    "trust_remote_code",
    "unexpected_keys",
)


@contextmanager
def abandoning(folder: RunFolder | None) -> Iterator[None]:
    """Leave nothing of a run in its folder that ends inside before its first block, whatever ends it."""
    try:
        yield
    except BaseException:
        if folder is not None:
            folder.abandon()
        raise


def refuse_small_disk(job: PruneJob, loaded: LoadedModel, plan: Plan) -> None:
    """Refuse the run's folder if its disk has not the space for what is still to be written.

    Raises:
        RelaxPruneError: naming the folder, what is needed and what is free.
    """
    if not RunFolder(job.folder, {}).finished:
        refuse_full_disk(job.folder, plan, saved_bytes(job, loaded), len(loaded.tokenizer or ()))


def earlier_sampler(job: PruneJob) -> Sampler | None:
    """Return what gives the windows that the model wrote before, as those are what the run has read.

    Returns:
        For an unfinished run its windows; for a finished one, which keeps none, any of their shape; None if the model
        has to write them.

    Raises:
        RelaxPruneError: they are damaged, and not to be discarded.
    """
    folder = RunFolder(job.folder, {})
    if folder.finished:
        return random_windows
    try:
        samples = folder.load_samples() if job.run.resume else None
    except RelaxPruneError:
        if not job.run.discard_damaged:
            raise
        return None
    return None if samples is None else samples.again


def open_folder(
    job: PruneJob, loaded: LoadedModel, windows: TokenWindows, more: Sequence[torch.Tensor] = ()
) -> RunFolder:
    """Start the run's folder, or continue the one that is there."""
    return RunFolder.open(
        job.folder,
        loaded,
        run_fingerprint(job, loaded, windows, more),
        samples=ModelSamples.of(windows),
        resume=job.run.resume,
        discard_damaged=job.run.discard_damaged,
    )


def saved_bytes(job: PruneJob, loaded: LoadedModel) -> int:
    """Return the size of the model in the dtype that it is saved in: with ``--dtype`` that is not the one in memory."""
    if job.load.dtype == "auto":
        return parameter_bytes(loaded.model)
    stored = [FLOAT_DTYPES[name].itemsize for name in loaded.description["checkpoint_dtypes"] if name in FLOAT_DTYPES]
    return max(stored, default=4) * sum(parameter.numel() for parameter in loaded.model.parameters())


def run_fingerprint(
    job: PruneJob, loaded: LoadedModel, windows: TokenWindows, more: Sequence[torch.Tensor] = ()
) -> Fingerprint:
    """Return everything that the masks and new weights depend on; ``more`` is what only the refinement reads."""
    model, request = loaded.model, job.request
    return Fingerprint(
        model={
            "source": job.model,
            **{name: loaded.description[name] for name in _MODEL_FACTS},
            "class": type(model).__name__,
            "weights_sha256": weights_sha256(model),
            "dtype": loaded.description["dtype"],
            "attention": model.config._attn_implementation,
            "rotation": job.rotated,
        },
        calibration={**calibration_facts(job, windows), **refine_facts(job, more)},
        settings={
            "solver": request.solver.name,
            "solver_options": plain_values(asdict(request.solver)),
            "polytope": request.target.to_dict(),
            **plain_values(asdict(request.options)),
            "device": str(model.device),
            "threads": torch.get_num_threads(),
        },
        software=software_versions(request.distributions),
    )


def calibration_facts(job: PruneJob, windows: TokenWindows) -> dict[str, Any]:
    """Return the fingerprint's facts of the calibration windows.

    A finished run's folder does not keep what the model wrote: the record's checksums of that are taken as they are,
    and everything else is compared.
    """
    facts: dict[str, Any] = {
        "source": windows.source,
        "sha256": windows.sha256,
        "windows": windows.tokens.shape[0],
        "length": windows.tokens.shape[1],
        "batch_windows": job.windows_at_once,
        "description": plain_values(windows.description),
    }
    if SELF not in windows.kinds or not RunFolder(job.folder, {}).finished:
        return facts
    then = read_sealed_record(job.folder)["fingerprint"]["calibration"]
    text, known = facts["description"], then["description"]
    facts["sha256"], text["sha256"] = then["sha256"], known["sha256"]
    if "parts" in text:
        text["parts"][SELF]["sha256"] = known.get("parts", {}).get(SELF, {}).get("sha256")
    return facts


def refine_facts(job: PruneJob, more: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the fingerprint's facts of the windows that only a refinement reads."""
    count = sum(map(len, more))
    facts = {"windows": count, "sha256": tokens_sha256(torch.cat(tuple(more))) if count else None}
    if count and RunFolder(job.folder, {}).finished:
        facts["sha256"] = read_sealed_record(job.folder)["fingerprint"]["calibration"].get("refine", {}).get("sha256")
    return {"refine": facts}


def finish_folder(job: PruneJob, folder: RunFolder, loaded: LoadedModel, report: PruneReport) -> tuple[str, ...]:
    """Write the pruned model, reload and check it; returns the notices that the user must see."""
    notices = tuple(report_notices(report))
    notes = RunNotes(
        command=command_line(),
        base_model=job.model if loaded.commit or not Path(job.model).exists() else Path(job.model).name,
        license=loaded.description.get("license"),
        notices=notices,
        machine=machine_line(),
        peak_memory_bytes=peak_memory_bytes(),
    )
    weights = folder.fingerprint["model"]["weights_sha256"]
    model = in_stored_dtype(job, loaded, report, weights)
    checked = folder.finish(model, report, notes, job.memory.shard_bytes)
    job.output.result(
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


def in_stored_dtype(job: PruneJob, loaded: LoadedModel, report: PruneReport, weights: str) -> Any:
    """Return the pruned model in the dtype that the source stores.

    ``--dtype`` only sets the dtype of the computation: kept weights must stay those of the source, bit for bit. So the
    source is loaded again, as it is stored, and gets the same order of channels, masks and new values.

    Raises:
        RelaxPruneError: the source has changed, so that ``weights`` is not the SHA-256 of what is loaded again.
    """
    if job.load.dtype == "auto" or store_of(loaded.model).travels:  # blocks that travel come as they are stored
        return loaded.model
    # A branch may have moved since: the commit says what was pruned.
    stored = load_model(job.checkpoint, replace(job.load, dtype="auto", revision=loaded.commit or job.load.revision))
    computed = {name: tensor.dtype for name, tensor in loaded.model.state_dict().items()}
    if (found := weights_sha256(stored.model, computed)) != weights:
        raise RelaxPruneError(
            f"model {job.model!r} must keep its weights until the pruned model is saved, got SHA-256 {found} now, "
            f"{weights} when it was pruned: restore it and continue with --resume"
        )
    apply_permutations(stored.model, report.permutations)
    apply_masks(stored.model, report.masks, report.weights)
    return stored.model
