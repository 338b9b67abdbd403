"""A rotated dense model on the disk: a plain checkpoint, and ``rotation.json``, which says what it was made of and how.

``relaxprune rotate`` writes one. ``relaxprune prune --rotate`` keeps one in the run's folder, as ``dense/``, since it
is what the masks are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relaxprune.models.loading import LoadedModel
from relaxprune.models.rotated_blocks import changes_bases
from relaxprune.models.saved_model import save_settings, save_weights, verify_saved_model
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.durable import write_json, write_text
from relaxprune.support.json_files import JsonFormat, Maybe, Values, is_sealed, read_document, sealed
from relaxprune.support.new_folder import new_folder
from relaxprune.support.sentences import damaged

from .dense_folder import DENSE_NAME, ROTATION_NAME
from .fingerprint import changes, plain_values, weights_sha256
from .model_card import CARD_NAME, rotated_card
from .model_files import file_names
from .run_record import RunNotes, is_inside, list_files

_FORM = JsonFormat(
    version=1,
    shape={
        "source": {"name": str, "weights_sha256": str, "commit": Maybe(str), "package": Maybe(str)},
        "asked": dict,
        "calibration": dict,
        "rotation": dict,
        "weights_sha256": str,
        "files": Values({"bytes": int, "sha256": str}),
    },
    advice="delete its folder to have the model rotated again",
)


def write_rotated(
    folder: Path, loaded: LoadedModel, facts: Mapping[str, Any], notes: RunNotes, shard_bytes: int | None = None
) -> None:
    """Write a rotated model, reload it, and compare it with the one in memory; the folder appears when all is there.

    Args:
        folder: new or empty.
        loaded: the model, rotated by now, and what its source holds beside it.
        facts: ``source``, ``asked``, ``calibration`` and ``rotation``, as ``rotation.json`` has them.
        notes: command, base model, licence.
        shard_bytes: most that a weight file holds; None for 50 GB.

    Raises:
        RelaxPruneError: the folder cannot be written to, or what is read back is not what was meant.
    """
    with new_folder(folder, loaded.surplus.folder) as staging:
        save_settings(loaded.model, loaded.tokenizer, staging)
        save_weights(loaded.model, staging, loaded.surplus, shard_bytes)
        loaded.surplus.copy_files(staging)
        verify_saved_model(staging, loaded.model, {}, loaded.surplus)
        content = plain_values({"schema_version": _FORM.version, **facts})
        content["weights_sha256"] = weights_sha256(loaded.model)
        write_text(staging / CARD_NAME, rotated_card(notes, content["rotation"], changes_bases(loaded.model)))
        content["files"] = list_files(staging, file_names(staging))
        write_json(staging / ROTATION_NAME, sealed(content))


def read_rotated(folder: Path) -> dict[str, Any] | None:
    """Read what a rotated model says of itself; None where there is none.

    Raises:
        RelaxPruneError: it is damaged.
    """
    path = folder / ROTATION_NAME
    if not path.is_file():
        return None
    content = read_document(path, _FORM)
    if not is_sealed(content) or not all(map(is_inside, content["files"])):
        raise damaged(repr(str(path)), "its checksum does not match its content", _FORM.advice)
    return content


def refuse_other_rotation(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a rotated model that was made of something else, or in another way, than is asked for now.

    Args:
        folder: of the run.
        found: what ``read_rotated`` returns.
        asked: the entries ``source``, ``asked`` and ``calibration`` that it should have.

    Raises:
        RelaxPruneError: naming what differs.
    """
    was = {name: found[name] for name in asked}
    if differing := changes(was, plain_values(dict(asked))):
        raise RelaxPruneError(f"cannot resume the run in {str(folder)!r}: {'; '.join(differing)}")


def dense_files(folder: Path) -> list[str]:
    """Return the files of the rotated model in a run's folder, as paths in that; none where there is none."""
    dense = folder / DENSE_NAME
    return [f"{DENSE_NAME}/{name}" for name in file_names(dense)] if (dense / ROTATION_NAME).is_file() else []
