"""The folder a pruning run writes: a model that transformers loads, its masks, a record of every number, a model card.

While a run is under way its progress lies in ``.relaxprune/`` inside the folder: ``run.json`` (the fingerprint) and one
file per finished block, each written durably the moment the block is done. ``finish`` writes the model, reloads it,
checks it, and writes ``relaxprune.json`` last: a folder that has this file is complete and checked.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relaxprune.models.saved_model import Verification, install_files, save_settings, verify_saved_model
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.block_record import BlockRecord
from relaxprune.pruning.block_tuning import BlockTuning
from relaxprune.pruning.channels.permutation import Permutation
from relaxprune.pruning.prune_report import LayerReport, PruneReport
from relaxprune.support.durable import file_sha256, sweep_scratch, sync_folder, write_json, write_text
from relaxprune.support.outputs import refuse_output_folder, refuse_unwritable_folder

from .certificate_files import CertificateFiles
from .fingerprint import Fingerprint, differences
from .mask_file import MASKS_NAME, read_mask_file, write_masks
from .model_card import model_card
from .run_record import SCHEMA_VERSION, RunNotes, now, read_record, run_record
from .weight_files import WeightFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from relaxprune.certificates import Certificate
    from relaxprune.problems.polytopes import Polytope

RECORD_NAME = "relaxprune.json"
_WORK_NAME = ".relaxprune"
_BLOCK_KEYS = {"block", "layers", "permutations", "seconds", "tuning"}
_logger = logging.getLogger("relaxprune")


class RunFolder:
    """One run's folder; records finished blocks and certificates (``CertificateRecorder``) and writes the result.

    Make one with ``open``; ``path`` and ``fingerprint`` are then fixed.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Hold the folder ``path`` for the run with this fingerprint; writes nothing (see ``open``)."""
        self.path = path
        self.fingerprint = dict(fingerprint)
        self._work = path / _WORK_NAME
        self._blocks = self._work / "blocks"
        self._certificates = CertificateFiles(path, self._work)
        self._weights = WeightFiles(self._work / "weights")
        self._written: list[Path] = []
        self._made: list[Path] = []  # folders, innermost first
        self._used: set[int] = set()

    @staticmethod
    def refuse_occupied(path: str | Path, resume: bool = False) -> None:
        """Refuse a folder that a run may not write to; to be called before any work.

        Args:
            path: the output folder.
            resume: whether an interrupted run in it is to be continued.

        Raises:
            RelaxPruneError: if ``path`` is a file, cannot be written to, or is not empty and is not a run to be
                resumed.
        """
        path = Path(path)
        if not resume:
            more = "" if RunFolder(path, {}).finished else ", or add --resume to continue the run in it"
            refuse_output_folder(path, f"name a new one{more}")
            return
        refuse_unwritable_folder(path)
        if path.is_dir() and any(path.iterdir()) and not RunFolder(path, {}).begun:
            raise RelaxPruneError(f"output folder {str(path)!r} is not empty and holds no relaxprune run to resume")

    @classmethod
    def open(
        cls, path: str | Path, model: PreTrainedModel, tokenizer: Any, fingerprint: Fingerprint, *, resume: bool = False
    ) -> RunFolder:
        """Start a run in a new folder, or continue the one in it.

        Saves config, generation config and tokenizer at once.

        Args:
            path: the output folder, new or empty; with ``resume`` it may hold a run with an equal fingerprint.
            model: the model before pruning.
            tokenizer: its tokenizer, or None.
            fingerprint: what decides the result.
            resume: continue an interrupted run.

        Returns:
            The folder, ready to record blocks.

        Raises:
            RelaxPruneError: if the folder is occupied, the stored run differs (naming how), or the model's settings
                cannot be saved; then nothing is left behind.
        """
        cls.refuse_occupied(path, resume)
        folder = cls(Path(path), fingerprint.to_dict())
        stored = folder._stored_fingerprint()
        if stored is not None:
            changes = differences(stored, folder.fingerprint)
            if changes:
                raise RelaxPruneError(f"cannot resume the run in {str(path)!r}: {'; '.join(changes)}")
            if folder.finished:
                # Left by a process that was killed right after it had written the record.
                shutil.rmtree(folder._work, ignore_errors=True)
                return folder
        folder._begin(model, tokenizer)
        return folder

    @property
    def begun(self) -> bool:
        """Whether this folder holds a run, finished or not."""
        return self.finished or (self._work / "run.json").is_file()

    @property
    def notices(self) -> list[str]:
        """What the user must see of the finished run in this folder."""
        found: list[str] = read_record(self.path / RECORD_NAME)["notes"]["notices"]
        return found

    @property
    def finished(self) -> bool:
        """Whether the run in this folder is complete and was checked."""
        return (self.path / RECORD_NAME).is_file()

    @property
    def _certified(self) -> bool:
        """Whether this run was asked for certificates."""
        return self.fingerprint.get("settings", {}).get("certify") is not None

    @property
    def _refitted(self) -> bool:
        """Whether this run gives kept weights new values."""
        return bool(self.fingerprint.get("settings", {}).get("weights") == "refit")

    @property
    def solved_blocks(self) -> list[int]:
        """Indices of the blocks whose masks are recorded here, ascending."""
        return sorted(int(path.stem) for path in self._blocks.glob("*.safetensors"))

    def load(self, block_index: int) -> BlockRecord | None:
        """Return a block's record from the interrupted run, or None if it has to be solved.

        Blocks are asked for in the order of execution, which need not be that of their indices. When one is missing,
        the records that were not asked for before are dropped: they were solved on inputs from a block that will now
        be solved anew.

        Raises:
            RelaxPruneError: if the file is damaged or lacks a certificate; deleting it has the block solved again.
        """
        path = self._block_path(block_index)
        if not path.is_file():
            self._drop_unused(block_index)
            return None
        masks, extra = read_mask_file(path)
        if not isinstance(extra, dict) or set(extra) != _BLOCK_KEYS or extra["block"] != block_index:
            raise RelaxPruneError(
                f"{str(path)!r} is not the record of block {block_index}; delete it to solve it again"
            )
        lacking = self._certificates.missing(masks) if self._certified else []
        if lacking:
            raise RelaxPruneError(
                f"the certificate of {lacking[0]!r} is missing; delete {str(path)!r} to solve its block again"
            )
        self._used.add(block_index)
        layers = [LayerReport.from_dict(layer) for layer in extra["layers"]]
        permutations = [Permutation.from_dict(item) for item in extra["permutations"]]
        weights = self._weights.load(block_index, masks) if self._refitted else {}
        tuning = None if extra["tuning"] is None else BlockTuning(**extra["tuning"])
        return BlockRecord(masks, layers, extra["seconds"], permutations, weights, tuning)

    def save(self, block_index: int, record: BlockRecord) -> None:
        """Record a finished block durably: masks and reports in one file, whole or not at all."""
        layers = [layer.to_dict() for layer in record.layers]
        permutations = [item.to_dict() for item in record.permutations]
        extra = {"block": block_index, "layers": layers, "permutations": permutations, "seconds": record.seconds}
        extra["tuning"] = None if record.tuning is None else asdict(record.tuning)
        if self._refitted:  # first: a block counts once its masks are recorded
            self._weights.save(block_index, record.weights)
        write_masks(self._block_path(block_index), record.masks, extra)
        self._used.add(block_index)

    def load_allocation(self) -> dict[str, int] | None:
        """Return how the interrupted run shares its sparsity, None if that has to be decided.

        Raises:
            RelaxPruneError: if the file is damaged; deleting it has it decided again.
        """
        path = self._work / "allocation.json"
        if not path.is_file():
            return None
        counts: dict[str, int] = read_record(path).get("pruned_per_row", {})
        if not counts or not all(isinstance(count, int) and count >= 0 for count in counts.values()):
            raise RelaxPruneError(f"{str(path)!r} is not the allocation of a run; delete it to have it decided again")
        return counts

    def save_allocation(self, counts: dict[str, int]) -> None:
        """Keep, durably, how many entries of every row each layer loses."""
        write_json(self._work / "allocation.json", {"schema_version": SCHEMA_VERSION, "pruned_per_row": counts})

    def save_certificate(self, parameter: str, certificate: Certificate, polytope: Polytope) -> None:
        """Keep a layer's certificate, durably; it counts once its block is recorded."""
        self._certificates.save(parameter, certificate, polytope)

    def finish(self, model: PreTrainedModel, report: PruneReport, notes: RunNotes) -> Verification:
        """Write the result, reload it from disk, check it, and only then declare the run finished.

        Args:
            model: the pruned model, in the dtype to be saved.
            report: the run's report; ``masks.safetensors`` gets its masks.
            notes: command, base model, licence, notices.

        Returns:
            What the reload confirmed.

        Raises:
            RelaxPruneError: if the reloaded files are not exactly what was meant.
        """
        staging = self._staging()
        model.save_pretrained(staging)
        write_masks(staging / MASKS_NAME, report.masks)
        files = install_files(staging, self.path)
        if self._certified:
            files += self._certificates.install()
            self._certificates.check(report.layers)
        verification = verify_saved_model(self.path, model, read_mask_file(self.path / MASKS_NAME)[0])
        record = run_record(self.fingerprint, report, notes, verification)
        layers = [layer.to_dict() for layer in report.layers]
        write_text(self.path / "README.md", model_card(notes, self.fingerprint, layers))
        names = sorted({*files, "README.md"} | {path.name for path in self.path.iterdir() if path.is_file()})
        record["files"] = {
            name: {"bytes": (self.path / name).stat().st_size, "sha256": file_sha256(self.path / name)}
            for name in names
        }
        write_json(self.path / RECORD_NAME, record)
        shutil.rmtree(self._work)
        sync_folder(self.path)
        return verification

    def verify_files(self) -> int:
        """Compare every file of a finished run with the SHA-256 that ``relaxprune.json`` has for it.

        Returns:
            The number of files.

        Raises:
            RelaxPruneError: naming the first file that is missing or differs.
        """
        files = read_record(self.path / RECORD_NAME)["files"]
        for name, facts in files.items():
            path = self.path / name
            if not path.is_file() or file_sha256(path) != facts["sha256"]:
                raise RelaxPruneError(f"{str(path)!r} is missing or is not the file that the finished run wrote")
        return len(files)

    def abandon(self) -> None:
        """Remove what a run wrote that ended before its first block: bad input must leave nothing behind."""
        if self.finished or self.solved_blocks:
            return
        for path in self._written:
            path.unlink(missing_ok=True)
        shutil.rmtree(self._work, ignore_errors=True)
        for folder in self._made:
            with suppress(OSError):  # somebody else's files lie in it by now
                folder.rmdir()

    def _begin(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Write the fingerprint first, so that any later crash can be resumed, then the model's settings."""
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self._blocks.mkdir(parents=True, exist_ok=True)
        sweep_scratch(self.path)
        run = {"schema_version": SCHEMA_VERSION, "fingerprint": self.fingerprint, "started": now()}
        if self._stored_fingerprint() is None:
            write_json(self._work / "run.json", run)
        staging = self._staging()
        try:
            save_settings(model, tokenizer, staging)
            inner = (self.path / path.relative_to(staging) for path in staging.rglob("*") if path.is_dir())
            self._made[:0] = sorted((folder for folder in inner if not folder.exists()), reverse=True)
            self._written = [self.path / name for name in install_files(staging, self.path)]
        except RelaxPruneError:
            self.abandon()
            raise

    def _stored_fingerprint(self) -> dict[str, Any] | None:
        """Return the fingerprint of the run in this folder, finished or not, or None if there is none."""
        for path in (self.path / RECORD_NAME, self._work / "run.json"):
            if path.is_file():
                stored: dict[str, Any] = read_record(path)["fingerprint"]
                return stored
        return None

    def _staging(self) -> Path:
        """Return an empty folder on the same file system for files that another library writes."""
        staging = self._work / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        return staging

    def _block_path(self, block_index: int) -> Path:
        return self._blocks / f"{block_index:05d}.safetensors"

    def _drop_unused(self, block_index: int) -> None:
        """Delete the records that no earlier step of this session used, for block ``block_index`` has none."""
        for index in sorted({*self.solved_blocks} - self._used):
            _logger.warning("block %d has no record: block %d is solved again", block_index, index)
            self._block_path(index).unlink()
