"""``relaxprune.json``: what a finished run states about itself, and reading it back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from relaxprune.models.saved_model import ReloadCheck
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.support.durable import file_facts, is_unchanged
from relaxprune.support.json_files import JsonFormat, Maybe, Values, is_sealed, read_document
from relaxprune.support.sentences import damaged

from .refinement_file import REFINEMENT_SHAPE, RESELECTION_SHAPE

RECORD_NAME = "relaxprune.json"
UNSEALED = "its checksum does not match its content"
_TUNING = {name: float for name in ("error_before", "error_after", "held_out_before", "held_out_after", "seconds")}
_MODEL = ("kind", "commit", "package", "dtype")
RECORD = JsonFormat(
    version=1,
    shape={
        "finished": Maybe(str),
        "notes": {
            "command": Maybe(str),
            "base_model": Maybe(str),
            "license": Maybe(str),
            "notices": [str],
            "machine": Maybe(str),
            "peak_memory_bytes": Maybe(int),
        },
        "fingerprint": {
            "model": {"weights_sha256": str, "source": str, **{name: Maybe(str) for name in _MODEL}},
            "settings": {"polytope": Maybe(dict), "weights": Maybe(str)},
        },
        # What came later than the first version may be missing.
        "report": {
            "solver": str,
            "layers": [dict],
            "seconds": Maybe(Values(float)),
            "roles": Maybe([dict]),
            "permutations": Maybe([dict]),
            "tunings": Maybe([{"block": int, "epochs": int, "part": Maybe(str), **_TUNING}]),
            "refinement": Maybe(REFINEMENT_SHAPE),
            "reselection": Maybe(RESELECTION_SHAPE),
            "coverage": Maybe(dict),
            "skipped": Maybe([{"name": str, "reason": str}]),
        },
        "verification": dict,
        "files": Values({"bytes": int, "sha256": str}),
    },
)


@dataclass(frozen=True)
class RunNotes:
    """What a run folder states in addition to the report.

    Attributes:
        command: the command line that made it.
        base_model: hub id or name of the model that was pruned.
        license: its licence, as its own card states it, if known.
        notices: sentences that the user must see (also the reason for exit code 3).
        machine: processor, cores, threads, accelerator and versions that seconds depend on, in one line.
        peak_memory_bytes: the largest resident size of the process that pruned, until the model was written; of the
            last session if the run was continued. None if the system does not report it.
    """

    command: str
    base_model: str
    license: str | None = None
    notices: tuple[str, ...] = ()
    machine: str | None = None
    peak_memory_bytes: int | None = None


def run_record(
    fingerprint: Mapping[str, Any], report: PruneReport, notes: RunNotes, verification: ReloadCheck
) -> dict[str, Any]:
    """Return the content of ``relaxprune.json``, without the list of files, as plain JSON values."""
    return {
        "schema_version": RECORD.version,
        "finished": now(),
        "notes": asdict(notes),
        "fingerprint": dict(fingerprint),
        "report": report.to_dict(),
        "verification": asdict(verification),
    }


def read_record(path: str | Path) -> dict[str, Any]:
    """Read ``relaxprune.json``, given its path or that of its folder, whether or not its checksum is right.

    Raises:
        FileNotFoundError: if there is no such file.
        RelaxPruneError: if it is damaged or has another schema version.
    """
    path = Path(path)
    file = path / RECORD_NAME if path.is_dir() else path
    record = read_document(file, RECORD)
    for name in record["files"]:
        if not is_inside(name):
            raise damaged(repr(str(file)), f"it lists {name!r}, which is not in its folder")
    return record


def read_sealed_record(folder: Path) -> dict[str, Any]:
    """Read a finished run's ``relaxprune.json`` as ``read_record`` does; a checksum that does not match is refused."""
    record = read_record(folder)
    if not is_sealed(record):
        raise damaged(repr(str(folder / RECORD_NAME)), UNSEALED)
    return record


def is_inside(name: str) -> bool:
    """Tell whether a path that a folder's record lists stays in that folder."""
    return not PurePath(name).is_absolute() and ".." not in PurePath(name).parts and "\0" not in name


def list_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of files in a folder, by name."""
    return {name: file_facts(folder / name) for name in sorted(names)}


def verify_files(folder: Path) -> int:
    """Compare every file of a finished run with the SHA-256 that ``relaxprune.json`` has for it, and that with its own.

    Returns:
        The number of files.

    Raises:
        RelaxPruneError: naming the first file that is missing or differs.
    """
    files: dict[str, dict[str, Any]] = read_sealed_record(folder)["files"]
    for name, facts in files.items():
        path = folder / name
        if not is_unchanged(path, facts):
            raise RelaxPruneError(f"{str(path)!r} is missing or is not the file that the finished run wrote")
    return len(files)


def now() -> str:
    """Return the current time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
