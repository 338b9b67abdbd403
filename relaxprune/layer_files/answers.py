"""The folder of answers: what was asked, and for every layer file its answer and a record of it.

``settings.json`` holds what the answers depend on. ``layers/NAME/`` is of ``NAME.safetensors``:

- ``masks.safetensors``, the mask ``weight`` and all facts;
- ``weight.safetensors``, where weights move;
- ``certificate.safetensors``, where one was asked for;
- ``record.json``, written last: size and SHA-256 of the problem file and of all of these.

``summary.json`` is of the last call that came to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs.fingerprint import changes
from relaxprune.support.durable import file_facts, is_unchanged, sweep_scratch, write_json
from relaxprune.support.folder_lock import folder_lock
from relaxprune.support.json_files import JsonFormat, Values, is_sealed, present, read_document, sealed
from relaxprune.support.outputs import refuse_output_folder, refuse_unwritable_folder

from .outcomes import FAILED, KEPT, STORED, FileOutcome, FilesSummary

MASKS, WEIGHT, CERTIFICATE = "masks.safetensors", "weight.safetensors", "certificate.safetensors"
_SETTINGS, _RECORD, _SUMMARY, _LAYERS = "settings.json", "record.json", "summary.json", "layers"
_SETTINGS_FORM = JsonFormat(1, {"settings": dict}, "name a new folder")
_FACTS = {"bytes": int, "sha256": str}
_RECORD_FORM = JsonFormat(1, {"problem": _FACTS, "files": Values(_FACTS), "outcome": STORED, "sha256": str})


@dataclass(frozen=True)
class AnswersFolder:
    """A folder of answers to one question.

    Attributes:
        path: the folder.
    """

    path: Path

    @contextmanager
    def opened(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder for this process, new or with answers to the same question.

        Args:
            settings: what the answers depend on besides their files, as JSON values.

        Raises:
            RelaxPruneError: it holds something else, or answers to another question, or another process writes to it.
        """
        refuse_unwritable_folder(self.path)
        begun = present(self.path / _SETTINGS)
        if begun:
            self._refuse_others(settings)
        else:
            refuse_output_folder(self.path, "name one that is new, or one of earlier answers")
        with folder_lock(self.path):
            if not begun:
                write_json(self.path / _SETTINGS, {"schema_version": _SETTINGS_FORM.version, "settings": settings})
            sweep_scratch(self.path)
            yield

    def _refuse_others(self, settings: Mapping[str, Any]) -> None:
        """Raise RelaxPruneError where the folder's answers are to another question."""
        found = read_document(self.path / _SETTINGS, _SETTINGS_FORM)["settings"]
        different = changes(found, settings)
        if different:
            raise RelaxPruneError(
                f"output folder {str(self.path)!r} has answers to another question: {'; '.join(different)}; name a "
                "new folder, or ask the same"
            )

    def layer(self, name: str) -> Path:
        """Return the folder of one answer."""
        return self.path / _LAYERS / name

    def earlier(self, name: str, file: Path) -> FileOutcome | None:
        """Return what an earlier call made of a file, None if that is to be done now.

        An answer is kept if the problem file and all of the answer's own files are what they were; so is a failure
        that would be the same again.
        """
        folder = self.layer(name)
        record = _read_record(folder / _RECORD)
        if record is None or not is_unchanged(file, record["problem"]):
            return None
        stored = record["outcome"]
        if stored["reason"] is not None:
            return FileOutcome(name=name, file=str(file), state=FAILED, **stored) if stored["final"] else None
        files = record["files"]
        if MASKS not in files or not all(is_unchanged(folder / other, facts) for other, facts in files.items()):
            return None
        return FileOutcome(name=name, file=str(file), state=KEPT, **stored)

    def keep_failure(self, outcome: FileOutcome) -> None:
        """Write down why a file has no answer, if another try would end the same way."""
        file, folder = Path(outcome.file), self.layer(outcome.name)
        if outcome.final and file.is_file():
            clear(folder)
            write_record(folder, file, outcome)

    def keep_summary(self, summary: FilesSummary) -> None:
        """Write down what became of all files."""
        write_json(self.path / _SUMMARY, summary.to_dict())


def write_record(folder: Path, file: Path, outcome: FileOutcome) -> None:
    """Write the record of an answer, or of a failure, as the last of its files."""
    names = () if outcome.failed else (MASKS, WEIGHT, CERTIFICATE)
    record = {
        "schema_version": _RECORD_FORM.version,
        "problem": file_facts(file),
        "files": {name: file_facts(folder / name) for name in names if (folder / name).exists()},
        "outcome": outcome.stored(),
    }
    write_json(folder / _RECORD, sealed(record))


def clear(folder: Path) -> None:
    """Make the folder of an answer, without what an earlier call may have left there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_RECORD, MASKS, WEIGHT, CERTIFICATE):
        (folder / name).unlink(missing_ok=True)


def _read_record(path: Path) -> Mapping[str, Any] | None:
    """Return a record, None where there is none that can be trusted."""
    try:
        record = read_document(path, _RECORD_FORM) if path.is_file() else None
    except RelaxPruneError:
        return None
    return record if record is not None and is_sealed(record) else None
