"""The rotated model of a run: written into the run's folder before anything is pruned, or found there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from relaxprune import RelaxPruneError
from relaxprune.runs import RunFolder
from relaxprune.runs.dense_folder import DENSE_NAME, sweep_parts
from relaxprune.runs.rotated_model import read_rotated, refuse_other_rotation

from ..rotating import asked_facts, use_threads, write_rotation
from .job import PruneJob

ROTATION_NOTE = "time of --rotate not predicted; it keeps the dense model, rotated, in the run's folder"
# Of what ``rotation.json`` says: what a run's record states; the rest is there.
_STATED = ("source", "asked", "calibration")
_OUTCOME = ("stream", "reason", "untied_bytes", "change_bytes", "change_share")


def rotated(job: PruneJob) -> PruneJob:
    """Return a job for the rotated model, which lies in the run's folder by then; the job itself without a rotation.

    Raises:
        RelaxPruneError: the model cannot be rotated, or the folder holds another rotation.
    """
    folder = job.folder / DENSE_NAME
    _refuse_others(job, folder)
    if job.rotation is None:
        return job
    sweep_parts(job.folder)
    found = read_rotated(folder)
    if found is None:
        use_threads(job.run.threads)
        job.folder.mkdir(parents=True, exist_ok=True)
        write_rotation(job.rotation, folder)
        found = read_rotated(folder)
        assert found is not None  # just written
    else:
        refuse_other_rotation(job.folder, found, asked_facts(job.rotation))
        job.output.say(f"{folder} holds the rotated model; going on with it")
    return replace(job, rotated=_stated(found))


def _refuse_others(job: PruneJob, folder: Path) -> None:
    """Refuse a run that was begun without a rotation, and a rotated model that this run may not be meant to go on with.

    Raises:
        RelaxPruneError: naming the folder.
    """
    run = RunFolder(job.folder, {})
    resumed = run.begun and (job.run.resume or run.finished)
    if resumed and job.rotation is not None and not run.rotated:
        raise RelaxPruneError(f"cannot resume the run in {str(job.folder)!r}: it was begun without --rotate")
    if folder.exists() and not resumed and not (job.run.resume and job.rotation is not None):
        raise RelaxPruneError(
            f"output folder {str(job.folder)!r} holds a rotated model: add --resume to go on with it by the same "
            f"options, delete {str(folder)!r}, or name another folder"
        )


def _stated(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's record says of the rotation: all that is the same whenever it is made."""
    rotation = found["rotation"]
    return {name: found[name] for name in _STATED} | {name: rotation[name] for name in _OUTCOME}
