"""``.relaxprune/manifest.json``: the files of an unfinished run that count, each with its checksum, and its own.

A file counts once it is listed. It is listed after it is on the disk, and taken off the list before it is replaced or
removed: a kill between any two writes leaves files that are not listed, never a listed one that differs. What differs
from the list was damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from relaxprune.support.durable import file_facts, write_json
from relaxprune.support.json_files import JsonFormat, Maybe, Values, is_sealed, read_document, sealed
from relaxprune.support.sentences import damaged

MANIFEST_NAME = "manifest.json"
_ADVICE = "add --discard-damaged to begin the run again"
_FORM = JsonFormat(
    version=1,
    shape={"files": Values({"bytes": int, "sha256": str, "block": Maybe(int)}), "installed": [str], "sha256": str},
    advice=_ADVICE,
)


class Manifest:
    """The list, read when it is first needed; only the process that holds the run's folder may change it.

    Args:
        work: the folder of the run's progress.
    """

    def __init__(self, work: Path) -> None:
        self.path = work / MANIFEST_NAME
        self._content: dict[str, Any] | None = None

    @property
    def exists(self) -> bool:
        """Whether a run was begun."""
        return self.path.is_file()

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Listed name -> its ``bytes``, its ``sha256`` and the ``block`` that it belongs to, None for the run's own.

        Raises:
            RelaxPruneError: the manifest is damaged.
        """
        found: dict[str, dict[str, Any]] = self._read()["files"]
        return found

    @property
    def installed(self) -> set[str]:
        """Names of what the run has put into its folder, or was about to."""
        return set(self._read()["installed"])

    def begin(self, files: Mapping[str, Path], installed: Iterable[str]) -> None:
        """Write a new list."""
        self._content = {"files": {}, "installed": sorted(installed)}
        self.add(files)

    def add(self, files: Mapping[str, Path], block: int | None = None) -> None:
        """List files, which are on the disk by now.

        Args:
            files: name -> path.
            block: the block that they belong to.
        """
        entries = {name: {**file_facts(path), "block": block} for name, path in files.items()}
        self._write(files={**self.files, **entries})

    def drop(self, names: Iterable[str]) -> None:
        """Take files off the list, before they are replaced or removed; those that are not on it are no matter."""
        gone = {*names} & {*self.files}
        if gone:
            self._write(files={name: entry for name, entry in self.files.items() if name not in gone})

    def install(self, names: Iterable[str]) -> None:
        """Note what the run is about to put into its folder."""
        if not {*names} <= self.installed:
            self._write(installed=sorted({*names} | self.installed))

    def _read(self) -> dict[str, Any]:
        """Return the content, checked."""
        if self._content is None:
            if not self.exists:
                raise damaged(repr(str(self.path)), "it is missing", _ADVICE)
            content = read_document(self.path, _FORM)
            if not is_sealed(content):
                raise damaged(repr(str(self.path)), "its checksum does not match its content", _ADVICE)
            self._content = content
        return self._content

    def _write(self, **changed: Any) -> None:
        """Replace the list durably; only then is it what this object holds."""
        content = sealed({"schema_version": _FORM.version, **self._read(), **changed})
        write_json(self.path, content)
        self._content = content
