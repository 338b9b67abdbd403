"""Loading the model of a run to where there is memory for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from relaxprune import RelaxPruneError
from relaxprune.models import FLOAT_DTYPES, CannotTravel, LoadedModel, LoadOptions
from relaxprune.pruning import Plan, make_plan
from relaxprune.pruning.placement import placed
from relaxprune.residency import Residency
from relaxprune.residency.store import store_of
from relaxprune.runs.run_progress import states_folder

from ..endings import door
from ..loading import load_model
from .job import PruneJob


def prepare(job: PruneJob) -> tuple[Plan, LoadedModel]:
    """Load the model and decide what is pruned, and where weights and hidden states live meanwhile.

    With ``--memory`` the model is planned without its weights first: what the run takes says where they go.
    """
    if job.run.threads is not None:
        torch.set_num_threads(job.run.threads)
    job.output.say(f"loading {job.model}")
    memory = job.memory.memory_bytes
    plan, loaded = _planned(job, job.load) if memory is None else _placed(job, memory)
    if store_of(plan.model).travels or plan.residency != Residency():
        job.output.say(plan.residency)
    return plan, loaded


def _placed(job: PruneJob, memory_bytes: int) -> tuple[Plan, LoadedModel]:
    """Load the model to where so much memory has room for it; whole, unless told otherwise, if it cannot travel."""
    asked = job.load.offload
    first = asked or (None if job.request.options.whole_model else "disk")
    try:
        plan, loaded = _planned(job, replace(job.load, offload=first))
    except CannotTravel:
        if asked:
            raise
        asked = "device"
        plan, loaded = _planned(job, job.load)
    residency = placed(plan, memory_bytes, asked)
    if residency.weights != plan.residency.weights:
        del plan, loaded
        whole = residency.weights == "device"
        plan, loaded = _planned(job, replace(job.load, offload=None if whole else residency.weights))
    if job.run.out is not None:
        residency = replace(residency, folder=states_folder(job.run.out))
    return replace(plan, residency=residency), loaded


def _planned(job: PruneJob, options: LoadOptions) -> tuple[Plan, LoadedModel]:
    """Load the model in one way, and plan the run."""
    with door():
        loaded = load_model(job.checkpoint, options if job.rotated is None else replace(options, revision=None))
    refuse_rounding(job, loaded)
    return make_plan(loaded.model, job.request, job.tokens), loaded


def refuse_rounding(job: PruneJob, loaded: LoadedModel) -> None:
    """Refuse new weights that would be rounded when saved, since their reported errors would not hold.

    Raises:
        RelaxPruneError: weights move, with a ``--dtype`` other than that of the stored weights.
    """
    stored = {str(FLOAT_DTYPES[name]) for name in loaded.description["checkpoint_dtypes"] if name in FLOAT_DTYPES}
    computed = loaded.description["dtype"]
    options = job.request.options
    if options.new_values and job.load.dtype != "auto" and stored - {f"torch.{computed}"}:
        raise RelaxPruneError(
            f"new weights must be computed in the dtype that the model stores, {', '.join(sorted(stored))}, got "
            f"--dtype {computed}: leave it out (Grams and solvers use float32 and float64 in any case)"
        )
