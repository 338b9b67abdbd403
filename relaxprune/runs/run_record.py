"""``relaxprune.json``: what a finished run states about itself, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from relaxprune.models.saved_model import Verification
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.prune_report import PruneReport

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunNotes:
    """What a run folder states beside the report.

    Attributes:
        command: the command line that made it.
        base_model: hub id or name of the model that was pruned.
        license: its licence, as its own card states it, if known.
        notices: sentences that the user must see (also the reason for exit code 3).
        machine: processor, cores, threads, accelerator and versions that seconds depend on, in one line.
        peak_memory_bytes: the largest resident size of the process that pruned, until the model was written; of the
            last session where the run was continued. None where the system does not tell.
    """

    command: str
    base_model: str
    license: str | None = None
    notices: tuple[str, ...] = ()
    machine: str | None = None
    peak_memory_bytes: int | None = None


def run_record(
    fingerprint: Mapping[str, Any], report: PruneReport, notes: RunNotes, verification: Verification
) -> dict[str, Any]:
    """Return the content of ``relaxprune.json``, less the list of files, as plain JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "finished": now(),
        "notes": asdict(notes),
        "fingerprint": dict(fingerprint),
        "report": report.to_dict(),
        "verification": asdict(verification),
    }


def read_record(path: str | Path) -> dict[str, Any]:
    """Read ``relaxprune.json`` (or a run's ``run.json``) and check its schema version.

    Raises:
        FileNotFoundError: if there is no such file.
        RelaxPruneError: if it is damaged or of another schema version.
    """
    path = Path(path)
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = record["schema_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise RelaxPruneError(f"{str(path)!r} is damaged: it is not the JSON that relaxprune writes") from error
    if found != SCHEMA_VERSION:
        raise RelaxPruneError(f"{str(path)!r} has schema version {found!r}, this relaxprune reads {SCHEMA_VERSION}")
    return record


def now() -> str:
    """Return the present time, UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
