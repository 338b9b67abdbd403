"""The finished refinement of a run in progress: the weights of all pruned layers, and what was gained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.block_record import RefinementRecord
from relaxprune.pruning.tuning.gains import Refinement
from relaxprune.support.container import TensorFormat, metadata_json, read_container, write_container
from relaxprune.support.json_files import Values, misfit
from relaxprune.support.sentences import damaged

REFINEMENT_NAME = "refined.safetensors"
REFINEMENT_ADVICE = "delete it to refine the model again"
REFINEMENT_SHAPE = {
    "measure": str,
    **dict.fromkeys(("passes", "steps", "tuned_windows", "held_out_windows"), int),
    **dict.fromkeys(("tuned_before", "tuned_after", "held_out_before", "held_out_after", "seconds"), float),
}
_FORM = TensorFormat(kind="weight file", name="relaxprune.refined", keys=("refinement",))


def save_refinement(path: Path, record: RefinementRecord) -> None:
    """Write a finished refinement durably: whole or not at all."""
    facts = {"refinement": asdict(record.refinement), "seconds": record.seconds}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    write_container(path, _FORM, record.weights, {"refinement": text})


def load_refinement(path: Path) -> RefinementRecord:
    """Read a finished refinement.

    Raises:
        RelaxPruneError: the file is damaged; deleting it has the model refined again.
    """
    try:
        weights, metadata = read_container(path, _FORM)
        facts = metadata_json(metadata, "refinement", path, _FORM)
    except (OSError, RelaxPruneError) as error:
        raise RelaxPruneError(f"{str(path)!r} cannot be read: {REFINEMENT_ADVICE}") from error
    shape = {"refinement": REFINEMENT_SHAPE, "seconds": Values(float)}
    if misfit(facts, shape) or set(facts["refinement"]) != set(REFINEMENT_SHAPE):
        raise damaged(repr(str(path)), "it does not say what was gained", REFINEMENT_ADVICE)
    return RefinementRecord(Refinement(**facts["refinement"]), weights, facts["seconds"])
