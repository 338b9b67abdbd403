"""What a run in progress has done to the whole model: the weights and masks of all pruned layers, what was gained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.block_record import RefinementRecord
from relaxprune.support.container import TensorFormat, metadata_json, read_container, write_container
from relaxprune.support.json_files import Maybe, Values, misfit
from relaxprune.support.mask_bits import fits, pack_mask, unpack_mask
from relaxprune.support.sentences import damaged

REFINEMENT_NAME = "refined.safetensors"
REFINEMENT_ADVICE = "delete it to refine the model again"
_GAIN = {
    "measure": str,
    **dict.fromkeys(("tuned_windows", "held_out_windows"), int),
    **dict.fromkeys(("tuned_before", "tuned_after", "held_out_before", "held_out_after", "seconds"), float),
}
REFINEMENT_SHAPE = {**_GAIN, "passes": int, "steps": int}
RESELECTION_SHAPE = {**_GAIN, "rounds": int, "moved": Values(int)}
_SHAPE = {
    "refinement": Maybe(REFINEMENT_SHAPE),
    "reselection": Maybe(RESELECTION_SHAPE),
    "seconds": Values(float),
    "masks": Maybe(Values([int])),
}
_MASKS = "masks/"  # before the name of a parameter whose mask a tensor is, as bits
_FORM = TensorFormat(kind="weight file", name="relaxprune.refined", keys=("refinement",))


def save_refinement(path: Path, record: RefinementRecord) -> None:
    """Write a finished refinement durably: whole or not at all."""
    facts = record.facts()
    if record.masks:
        facts["masks"] = {name: list(mask.shape) for name, mask in record.masks.items()}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    bits = {_MASKS + name: pack_mask(mask) for name, mask in record.masks.items()}
    write_container(path, _FORM, {**record.weights, **bits}, {"refinement": text})


def load_refinement(path: Path) -> RefinementRecord:
    """Read a finished refinement.

    Raises:
        RelaxPruneError: the file is damaged; deleting it has the model refined again.
    """
    try:
        tensors, metadata = read_container(path, _FORM)
        facts = metadata_json(metadata, "refinement", path, _FORM)
    except (OSError, RelaxPruneError) as error:
        raise RelaxPruneError(f"{str(path)!r} cannot be read: {REFINEMENT_ADVICE}") from error
    if not _is_whole(facts):
        raise damaged(repr(str(path)), "it does not say what was gained", REFINEMENT_ADVICE)
    shapes = facts.get("masks") or {}
    packed = {name: tensors.pop(_MASKS + name, None) for name in shapes}
    fitting = {name: bits for name, bits in packed.items() if bits is not None and fits(bits, shapes[name])}
    masks = {name: unpack_mask(bits, tuple(shapes[name])) for name, bits in fitting.items()}
    if set(masks) != set(shapes):
        raise damaged(repr(str(path)), "it does not hold the masks that it says", REFINEMENT_ADVICE)
    return RefinementRecord.of(facts, tensors, masks)


def _is_whole(facts: Any) -> bool:
    """Return whether facts say what was gained, and nothing else."""
    if misfit(facts, _SHAPE):
        return False
    forms: dict[str, Mapping[str, object]] = {"refinement": REFINEMENT_SHAPE, "reselection": RESELECTION_SHAPE}
    found = [set(facts[name]) == set(form) for name, form in forms.items() if facts.get(name) is not None]
    return bool(found) and all(found)
