"""``.relaxprune``, the folder in which a run keeps its progress until it is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from relaxprune.options.prune_options import block_values
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.block_record import BlockRecord, RefinementRecord
from relaxprune.support.durable import is_scratch, is_unchanged, write_json
from relaxprune.support.folder_lock import LOCK_NAME
from relaxprune.support.json_files import JsonFormat, Values, read_document
from relaxprune.support.sentences import damaged

from .block_files import BlockFiles
from .certificate_files import CertificateFiles
from .dense_folder import is_own
from .manifest import Manifest
from .refinement_file import REFINEMENT_ADVICE, REFINEMENT_NAME, load_refinement, save_refinement
from .samples_file import SAMPLES_ADVICE, SAMPLES_NAME, load_samples, save_samples

if TYPE_CHECKING:
    from relaxprune.certificates import Certificate
    from relaxprune.problems import MaskProblem
    from relaxprune.text.kept_samples import ModelSamples

WORK_NAME = ".relaxprune"
_RUN_NAME, _ALLOCATION_NAME = "run.json", "allocation.json"
_RUN = JsonFormat(version=1, shape={"fingerprint": dict})
# What may be deleted, or discarded, to be made again: file -> what it is called, and the advice about it.
_SINGLE = {
    _ALLOCATION_NAME: ("the allocation", "delete it to have it decided again"),
    REFINEMENT_NAME: ("the refinement", REFINEMENT_ADVICE),
    SAMPLES_NAME: ("the samples of the model", SAMPLES_ADVICE),
}
_ALLOCATION = JsonFormat(version=1, shape={"pruned_per_row": Values(int)}, advice=_SINGLE[_ALLOCATION_NAME][1])
_DISCARD = "or add --discard-damaged"


def states_folder(path: Path) -> Path:
    """Return where a run may keep hidden states while it is under way, of the run's folder."""
    return path / WORK_NAME / "states"


class RunProgress:
    """What an unfinished run has done: its fingerprint, samples, allocation, blocks, certificates and refinement.

    The refinement counts only while all blocks that it is of do.

    Args:
        path: the run's folder.
        settings: those of the run's fingerprint, which say whether weights move and layers are certified; empty if
            unknown.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self.folder = path / WORK_NAME
        self.manifest = Manifest(self.folder)
        self.blocks = BlockFiles(self.folder, moving=block_values(settings))
        self.certificates = CertificateFiles(path, self.folder)
        self.certified = settings.get("certify") is not None

    @property
    def begun(self) -> bool:
        """Whether a run was begun and not finished."""
        return self.manifest.exists or bool(self.blocks.found)

    @property
    def vacant(self) -> bool:
        """Whether the run's folder holds nothing but what a run leaves that is killed before it has done anything."""
        if not self._path.is_dir():
            return not self._path.exists()
        items = [item for item in self._path.iterdir() if not is_scratch(item) and not is_own(item)]
        names = {item.name for item in items} - {LOCK_NAME, WORK_NAME}
        if not self.begun:
            return not names
        with suppress(RelaxPruneError):  # damaged: there is something to lose
            ours = {PurePosixPath(name).parts[0] for name in self.manifest.installed}
            return {*self.manifest.files} <= {_RUN_NAME, SAMPLES_NAME} and names <= ours
        return False

    @property
    def solved(self) -> list[int]:
        """Indices of the blocks that are recorded, ascending; none where the manifest is damaged."""
        if not self.begun:
            return []
        with suppress(RelaxPruneError):
            listed = {entry["block"] for entry in self.manifest.files.values()}
            return [block for block in self.blocks.found if block in listed]
        return []

    def begin(
        self, fingerprint: Mapping[str, Any], installed: Iterable[str], samples: ModelSamples | None = None
    ) -> None:
        """Begin a run, so that any later crash can be resumed; one that is there stays.

        Args:
            fingerprint: what decides the result.
            installed: names of what is about to be put into the run's folder.
            samples: the calibration windows that the model wrote; None if it wrote none.
        """
        self.blocks.folder.mkdir(parents=True, exist_ok=True)
        kept = {}
        if samples is not None and not (self.begun and SAMPLES_NAME in self.manifest.files):
            kept[SAMPLES_NAME] = self.folder / SAMPLES_NAME
            save_samples(kept[SAMPLES_NAME], samples)
        if not self.begun:
            self._write_fingerprint(fingerprint)
            self.manifest.begin({_RUN_NAME: self.folder / _RUN_NAME, **kept}, installed)
            return
        self.manifest.install(installed)
        if kept:
            self.manifest.add(kept)

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint of the run that was begun.

        Raises:
            RelaxPruneError: the file is damaged.
        """
        found: dict[str, Any] = read_document(self.folder / _RUN_NAME, _RUN)["fingerprint"]
        return found

    def check(self) -> None:
        """Compare every file with the manifest; blocks whose record was deleted are forgotten.

        Raises:
            RelaxPruneError: naming the first file that is missing or differs, and what to delete.
        """
        self.blocks.refuse_strays()
        self._forget_deleted()
        for name in self._damaged():
            raise self._damage(name)

    def discard_damaged(self, fingerprint: Mapping[str, Any]) -> list[str]:
        """Discard what is damaged, so that it is made again: a file's block, or all where the manifest is damaged.

        Args:
            fingerprint: that of the run that is to be resumed, from which a damaged one is written again.

        Returns:
            What was discarded, one phrase each.

        Raises:
            RelaxPruneError: the fingerprint is damaged, and was another one.
        """
        self.blocks.refuse_strays()
        try:
            self._forget_deleted()
        except RelaxPruneError:
            self.remove()
            return ["all blocks, for the manifest is damaged"]
        found = []
        for name in self._damaged():
            block = self.manifest.files.get(name, {}).get("block")
            if name == _RUN_NAME:
                self._write_fingerprint(fingerprint)
                if self._differs(name):
                    raise damaged(
                        repr(str(self.folder / name)),
                        "it holds the settings of the run, and they were not these",
                        f"name the run's own settings, or delete {str(self.folder)!r} to begin again",
                    )
                found.append("the settings, which are written again")
            elif block is not None:
                self.delete_block(block)
                found.append(f"block {block}")
            elif name in self.manifest.files:
                self._delete(name)
                found.append(_SINGLE[name][0])
        return found

    def load_samples(self) -> ModelSamples | None:
        """Return the windows that the model wrote for the run, None if it has to write them.

        Raises:
            RelaxPruneError: the file or the manifest is damaged.
        """
        path = self.folder / SAMPLES_NAME
        if not self.begun or SAMPLES_NAME not in self.manifest.files or not path.is_file():
            return None
        if self._differs(SAMPLES_NAME):
            raise self._damage(SAMPLES_NAME)
        return load_samples(path)

    def load_allocation(self) -> dict[str, int] | None:
        """Return how the run shares its sparsity, None if that is not decided yet.

        Raises:
            RelaxPruneError: the file is damaged; delete it to have it decided again.
        """
        path = self.folder / _ALLOCATION_NAME
        if _ALLOCATION_NAME not in self.manifest.files or not path.is_file():
            return None
        counts: dict[str, int] = read_document(path, _ALLOCATION)["pruned_per_row"]
        if not counts or min(counts.values()) < 0:
            raise damaged(repr(str(path)), "it is not the allocation of a run", _ALLOCATION.advice)
        return counts

    def save_allocation(self, counts: Mapping[str, int]) -> None:
        """Keep, durably, how many entries of every row each layer loses."""
        path = self.folder / _ALLOCATION_NAME
        self.manifest.drop([_ALLOCATION_NAME])
        write_json(path, {"schema_version": _ALLOCATION.version, "pruned_per_row": dict(counts)})
        self.manifest.add({_ALLOCATION_NAME: path})

    def load_refinement(self) -> RefinementRecord | None:
        """Return the finished refinement of the run's blocks, None if it has to be made.

        Raises:
            RelaxPruneError: the file is damaged; delete it to have the model refined again.
        """
        listed = REFINEMENT_NAME in self.manifest.files
        return load_refinement(self.folder / REFINEMENT_NAME) if listed else None

    def save_refinement(self, record: RefinementRecord) -> None:
        """Keep, durably, the refinement of the blocks that are recorded."""
        path = self.folder / REFINEMENT_NAME
        self.manifest.drop([REFINEMENT_NAME])
        save_refinement(path, record)
        self.manifest.add({REFINEMENT_NAME: path})

    def load_block(self, block: int) -> BlockRecord | None:
        """Return a block's record, None if it has to be solved.

        Raises:
            RelaxPruneError: a file of it is damaged; deleting the record has the block solved again.
        """
        return self.blocks.load(block) if block in self.solved else None

    def save_block(self, block: int, record: BlockRecord) -> None:
        """Record a finished block durably: its certificates are there by now; it counts once all of it is listed."""
        self.manifest.drop([*self._names_of(block), REFINEMENT_NAME])
        paths = self.blocks.save(block, record)
        if self.certified:
            paths += [path for name in record.masks if (path := self.certificates.staged(name)).is_file()]
        self.manifest.add({path.relative_to(self.folder).as_posix(): path for path in paths}, block)

    def delete_block(self, block: int) -> None:
        """Have a block solved again."""
        self._delete(*self._names_of(block), *({REFINEMENT_NAME} & {*self.manifest.files}))

    def save_certificate(self, parameter: str, certificate: Certificate, problem: MaskProblem) -> None:
        """Keep a layer's certificate, durably; it counts once its block is recorded."""
        path = self.certificates.staged(parameter)
        self.manifest.drop([path.relative_to(self.folder).as_posix()])
        self.certificates.save(parameter, certificate, problem)

    def staging(self) -> Path:
        """Return an empty folder on the same file system for files that another library writes."""
        staging = self.folder / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        return staging

    def clear(self) -> None:
        """Remove all of it, and what the run has put into its folder."""
        with suppress(RelaxPruneError):  # nothing was begun, or nobody knows
            for name in self.manifest.installed:
                path = self._path / name
                path.unlink(missing_ok=True)
                for folder in path.parents[: len(PurePosixPath(name).parts) - 1]:
                    with suppress(OSError):  # something else is in it
                        folder.rmdir()
        self.remove()

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.manifest = Manifest(self.folder)

    def _write_fingerprint(self, fingerprint: Mapping[str, Any]) -> None:
        """Write the fingerprint; one and the same gives the same bytes."""
        ordered = json.loads(json.dumps(fingerprint, sort_keys=True))
        write_json(self.folder / _RUN_NAME, {"schema_version": _RUN.version, "fingerprint": ordered})

    def _forget_deleted(self) -> None:
        """Take off the list what the user has deleted to have it made again, and the refinement of a deleted block."""
        there = {*self.blocks.found}
        files = self.manifest.files
        gone = [name for name, entry in files.items() if entry["block"] is not None and entry["block"] not in there]
        if gone:
            gone.append(REFINEMENT_NAME)
        gone += [name for name in _SINGLE if not (self.folder / name).is_file()]
        self.manifest.drop(gone)

    def _damaged(self) -> list[str]:
        """Return the names of listed files that are missing or differ from the list."""
        return [name for name in self.manifest.files if self._differs(name)]

    def _damage(self, name: str) -> RelaxPruneError:
        """Return the error for a listed file that is missing or differs: what to delete."""
        path, block = str(self._find(name)), self.manifest.files[name]["block"]
        advice = f"delete {str(self.folder)!r} to begin the run again"
        if block is not None:
            advice = f"delete {str(self.blocks.path(block))!r} to solve block {block} again"
        elif name in _SINGLE:
            advice = _SINGLE[name][1]
        return damaged(repr(path), "it is not the file that the run wrote", f"{advice}, {_DISCARD}")

    def _differs(self, name: str) -> bool:
        return not is_unchanged(self._find(name), self.manifest.files[name])

    def _find(self, name: str) -> Path:
        """Return where a listed file lies; a certificate may have been moved already to where it stays."""
        path = self.folder / name
        return path if path.is_file() else self.certificates.moved(path) or path

    def _names_of(self, block: int) -> list[str]:
        """Return the listed names of a block's files."""
        return [name for name, entry in self.manifest.files.items() if entry["block"] == block]

    def _delete(self, *names: str) -> None:
        """Take files off the list and remove them."""
        paths = [self._find(name) for name in names]
        self.manifest.drop(names)
        for path in paths:
            path.unlink(missing_ok=True)
