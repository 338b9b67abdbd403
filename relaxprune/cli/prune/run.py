"""One pruning run from the command line: load, plan, prune, write, reload and check."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from relaxprune import RelaxPruneError, prune_model
from relaxprune.models import LoadedModel
from relaxprune.models.token_limits import check_tokenizer, try_window
from relaxprune.pruning import Plan, PruneEvent, PruneReport, with_prediction
from relaxprune.ranks import ALONE, Ranks
from relaxprune.runs import RunFolder
from relaxprune.runs.dense_folder import DENSE_NAME
from relaxprune.runs.run_progress import states_folder
from relaxprune.support import machine_line, memory_line
from relaxprune.text import TokenWindows, calibration_windows
from relaxprune.text.mixture import SELF, source_parts
from relaxprune.text.model_samples import Sampler, can_sample, random_windows
from relaxprune.text.windows import HELD_OUT_SEED

from ..endings import door, tell
from ..interrupts import check
from .folder import abandoning, earlier_sampler, finish_folder, open_folder, refuse_small_disk
from .job import PruneJob
from .output import Output
from .placing import prepare
from .rotated import ROTATION_NOTE, rotated
from .together import shared_windows

_NOTHING = "nothing is written"
_OTHER_SEED = 2**31  # so that what the model writes for the refinement is not what it writes for the Grams


def run_prune(job: PruneJob, ranks: Ranks = ALONE) -> int:
    """Carry out a job, alone or with other ranks, and return the exit code.

    Everything that can be checked with the model is checked before the first block is solved.

    Raises:
        RelaxPruneError: for any bad input; then no output folder is left behind unless blocks are finished in it.
    """
    if job.rotation is not None and not ranks.alone:
        raise RelaxPruneError(
            f"a model is rotated by one process, got {ranks.world}: rotate it first, with `relaxprune rotate`, then "
            "prune what that wrote"
        )
    if not ranks.leader:
        return 0 if job.run.plan else follow(job, ranks)
    if job.run.plan:
        plan, loaded = prepare(job)
        windows = calibration_tokens(job, loaded, random_windows)
        more = refine_batches(job, loaded, random_windows)
        job.output.result(with_prediction(plan, batches(job, windows), windows.kinds, more))
        if job.rotation is not None:
            job.output.say(ROTATION_NOTE)
        return 0
    with RunFolder.hold(job.folder):
        RunFolder.refuse_occupied(job.folder, job.run.resume)
        return write_run(rotated(job), ranks)


def follow(job: PruneJob, ranks: Ranks) -> int:
    """Do this rank's part of a run that the leader writes; returns the exit code."""
    job = replace(job, output=Output(quiet=True))
    plan, loaded = prepare(job)
    windows = shared_windows(ranks, lambda: calibration_tokens(job, loaded))
    more = tuple(ranks.from_leader(lambda: refine_batches(job, loaded)))
    if not ranks.broadcast(None):
        prune_loaded(job, windows, plan, None, more, ranks=ranks)
    return 0


def write_run(job: PruneJob, ranks: Ranks = ALONE) -> int:
    """Prune into the folder, which this process holds; returns the exit code."""
    plan, loaded = prepare(job)
    shutil.rmtree(states_folder(job.folder), ignore_errors=True)  # left by a run that was killed
    refuse_small_disk(job, loaded, plan)
    windows = shared_windows(ranks, lambda: calibration_tokens(job, loaded, earlier_sampler(job)))
    sampler = random_windows if RunFolder(job.folder, {}).finished else None  # it keeps none, and none are compared
    more = tuple(ranks.from_leader(lambda: refine_batches(job, loaded, sampler)))
    folder = open_folder(job, loaded, windows, more)
    if ranks.broadcast(folder.finished):
        files = folder.verify_files()
        job.output.result(f"{folder.path} holds this run, finished; its {files} files are as they were written")
        return tell(folder.notices)
    if folder.solved_blocks:
        job.output.say(f"{folder.path} holds {len(folder.solved_blocks)} finished blocks; going on after them")
    with abandoning(folder):
        plan = with_prediction(plan, batches(job, windows), windows.kinds, more)
        announce(job, plan, windows)
        report = prune_loaded(job, windows, plan, folder, more, ranks=ranks)
    job.output.say(report)
    notices = finish_folder(job, folder, loaded, report)
    job.output.say(f"{machine_line()}; {memory_line()}")
    job.output.say(f"before the run, {plan.prediction}")
    return tell(notices)


def announce(job: PruneJob, plan: Plan, windows: TokenWindows) -> None:
    """Print the predicted cost of the run, and its first steps."""
    count, length = windows.tokens.shape
    job.output.say(plan.prediction)
    job.output.say(f"{count} calibration windows of {length} tokens ({windows.source}) run through the model first")
    if plan.request.target.sharing.measures:
        job.output.say("then a pass over the dense model decides how much of each layer is pruned")


def left_behind(out: Path | None) -> str:
    """Return what an interrupted run leaves in its output folder, as a clause."""
    if out is None or not (folder := RunFolder(out, {})).begun:
        rotated_too = out is not None and (out / DENSE_NAME).is_dir()
        return f"the rotated model is kept in {out}, and --resume continues from it" if rotated_too else _NOTHING
    if folder.finished:
        return f"the run in {out} is finished"
    return f"{len(folder.solved_blocks)} finished blocks are kept in {out}, and --resume continues from them"


def calibration_tokens(job: PruneJob, loaded: LoadedModel, sampler: Sampler | None = None) -> TokenWindows:
    """Return the calibration windows, which the model must be able to read.

    Args:
        job: says which.
        loaded: the model, and the tokenizer of text.
        sampler: gives the windows that the model would write; None has it write them.
    """
    # A model that writes no text reads the text alone, unless samples are asked for, and so refused.
    text_alone = job.calibration.self_share is None and len(job.sources) > 1 and not can_sample(loaded.model)
    wanted = source_parts(job.calibration.calibration, job.calibration.windows) if text_alone else job.sources
    if any(part.source != SELF for part in job.sources):
        check_tokenizer(loaded.model, loaded.tokenizer)
    with door():
        windows = calibration_windows(wanted, loaded.tokenizer, job.windows, model=loaded.model, sampler=sampler)
    try_window(loaded.model, windows.tokens)
    return windows


def refine_batches(job: PruneJob, loaded: LoadedModel, sampler: Sampler | None = None) -> tuple[torch.Tensor, ...]:
    """Return the windows that only a refinement reads, (windows, length) each; the model writes them.

    They are not kept for ``--resume``: the model writes them again, and other ones are refused.

    Args:
        job: says how many.
        loaded: the model.
        sampler: as for ``calibration_tokens``.
    """
    if not job.refine_samples or not (job.samples_asked or can_sample(loaded.model)):
        return ()
    asked = replace(job.windows, windows=job.refine_samples, seed=(job.windows.seed + _OTHER_SEED) % HELD_OUT_SEED)
    with door():
        found = calibration_windows(SELF, loaded.tokenizer, asked, model=loaded.model, sampler=sampler)
    return batches(job, found)


def batches(job: PruneJob, windows: TokenWindows) -> tuple[torch.Tensor, ...]:
    """Return the windows as they go through the model together, (windows, length) each."""
    parts: tuple[torch.Tensor, ...] = windows.tokens.split(job.windows_at_once)
    return parts


def prune_loaded(
    job: PruneJob,
    windows: TokenWindows,
    plan: Plan,
    folder: RunFolder | None,
    more: Sequence[torch.Tensor] = (),
    title: str = "pruning",
    ranks: Ranks = ALONE,
) -> PruneReport:
    """Prune the plan's model in place, with progress on stdout and finished blocks recorded in ``folder``."""
    with abandoning(folder), job.output.progress(plan.layers, title) as progress:

        def listen(event: PruneEvent) -> None:
            check()  # a library may have swallowed the interruption
            progress(event)

        return prune_model(
            plan.model,
            batches(job, windows),
            plan=plan,
            kinds=windows.kinds,
            refine_batches=more,
            recorder=folder,
            on_event=listen,
            ranks=ranks,
        )
