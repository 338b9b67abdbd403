"""``.relaxprune``, the folder in which a run keeps its progress until it is finished."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relaxprune.support.durable import write_json
from relaxprune.support.json_files import JsonFormat, Values, read_document
from relaxprune.support.sentences import damaged

from .block_files import BlockFiles
from .certificate_files import CertificateFiles
from .run_record import now

WORK_NAME = ".relaxprune"
_RUN = JsonFormat(version=1, shape={"fingerprint": dict})
_ALLOCATION = JsonFormat(version=1, shape={"pruned_per_row": Values(int)}, advice="delete it to have it decided again")


class RunProgress:
    """The progress of an unfinished run: ``run.json``, ``allocation.json``, its blocks and its certificates.

    Args:
        path: the run's folder.
        settings: those of the run's fingerprint, which say whether weights move and layers are certified; empty if
            unknown.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.folder = path / WORK_NAME
        self.blocks = BlockFiles(self.folder, refitted=settings.get("weights") == "refit")
        self.certificates = CertificateFiles(path, self.folder)
        self.certified = settings.get("certify") is not None

    @property
    def begun(self) -> bool:
        """Whether a run was begun and not finished."""
        return (self.folder / "run.json").is_file()

    def begin(self, fingerprint: Mapping[str, Any]) -> None:
        """Write the fingerprint, so that the run can be resumed after a crash; an existing one stays."""
        self.blocks.folder.mkdir(parents=True, exist_ok=True)
        if not self.begun:
            run = {"schema_version": _RUN.version, "fingerprint": dict(fingerprint), "started": now()}
            write_json(self.folder / "run.json", run)

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint of the run that was begun.

        Raises:
            RelaxPruneError: the file is damaged.
        """
        found: dict[str, Any] = read_document(self.folder / "run.json", _RUN)["fingerprint"]
        return found

    def load_allocation(self) -> dict[str, int] | None:
        """Return how the run shares its sparsity, None if that is not decided yet.

        Raises:
            RelaxPruneError: the file is damaged; delete it to have it decided again.
        """
        path = self.folder / "allocation.json"
        if not path.is_file():
            return None
        counts: dict[str, int] = read_document(path, _ALLOCATION)["pruned_per_row"]
        if not counts or min(counts.values()) < 0:
            raise damaged(repr(str(path)), "it is not the allocation of a run", _ALLOCATION.advice)
        return counts

    def save_allocation(self, counts: Mapping[str, int]) -> None:
        """Save durably how many entries of every row each layer loses."""
        content = {"schema_version": _ALLOCATION.version, "pruned_per_row": dict(counts)}
        write_json(self.folder / "allocation.json", content)

    def staging(self) -> Path:
        """Return an empty folder on the same file system for files that another library writes."""
        staging = self.folder / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        return staging

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
