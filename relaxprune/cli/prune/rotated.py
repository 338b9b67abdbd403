"""The rotated model of a run: written into the run's folder before anything is pruned, or found there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

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
    if job.rotation is None:
        return job
    folder = job.folder / DENSE_NAME
    sweep_parts(job.folder)
    begun = job.run.resume or RunFolder(job.folder, {}).finished
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before its first block
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


def _stated(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's record says of the rotation: all that is the same whenever it is made."""
    rotation = found["rotation"]
    return {name: found[name] for name in _STATED} | {name: rotation[name] for name in _OUTCOME}
