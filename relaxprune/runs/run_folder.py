"""The folder a pruning run writes: a model that transformers loads, its masks, a record of every number, a model card.

While a run is in progress, its state is in ``.relaxprune/`` inside the folder, each finished block in a file of its
own, written durably as soon as the block is done. ``finish`` writes the model, reloads it, checks it, and writes
``relaxprune.json`` last: a folder that has this file is complete and checked.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relaxprune.models.saved_model import ReloadCheck, save_settings, verify_saved_model
from relaxprune.models.surplus import Surplus
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.block_record import BlockRecord
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.support.durable import install_files, sweep_scratch, sync_folder, write_json, write_text
from relaxprune.support.outputs import refuse_output_folder, refuse_unwritable_folder

from .fingerprint import Fingerprint, changes
from .mask_file import MASKS_NAME, read_masks, write_masks
from .model_card import model_card
from .run_progress import RunProgress
from .run_record import RECORD_NAME, RunNotes, list_files, read_record, run_record, verify_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from relaxprune.certificates import Certificate
    from relaxprune.problems import MaskProblem

_logger = logging.getLogger("relaxprune")


class RunFolder:
    """One run's folder; records finished blocks and certificates (``CertificateRecorder``) and writes the result.

    Make one with ``open``; ``path`` and ``fingerprint`` are then fixed.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Hold the folder ``path`` for the run with this fingerprint; writes nothing (see ``open``)."""
        self.path = path
        self.fingerprint = dict(fingerprint)
        self._progress = RunProgress(path, self.fingerprint.get("settings", {}))
        self._written: list[Path] = []
        self._made: list[Path] = []  # folders, innermost first
        self._used: set[int] = set()
        self._surplus = Surplus()

    @staticmethod
    def refuse_occupied(path: str | Path, resume: bool = False) -> None:
        """Refuse a folder that a run may not write to; call it before any work.

        Args:
            path: the output folder.
            resume: whether to continue an interrupted run in it.

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
        cls,
        path: str | Path,
        model: PreTrainedModel,
        tokenizer: Any,
        fingerprint: Fingerprint,
        *,
        resume: bool = False,
        surplus: Surplus | None = None,
    ) -> RunFolder:
        """Start a run in a new folder, or continue the one in it.

        Saves config, generation config, tokenizer and the source's other files at once.

        Args:
            path: the output folder, new or empty; with ``resume`` it may hold a run with an equal fingerprint.
            model: the model before pruning.
            tokenizer: its tokenizer, or None.
            fingerprint: what decides the result.
            resume: continue an interrupted run.
            surplus: what the model's source holds beside it, None for nothing.

        Returns:
            The folder, ready to record blocks.

        Raises:
            RelaxPruneError: if the folder is occupied, the stored run differs (naming how), or the model's settings
                cannot be saved; then nothing is left behind.
        """
        cls.refuse_occupied(path, resume)
        folder = cls(Path(path), fingerprint.to_dict())
        folder._surplus = surplus or Surplus()
        if folder.begun:
            if differing := changes(folder._stored_fingerprint(), folder.fingerprint):
                raise RelaxPruneError(f"cannot resume the run in {str(path)!r}: {'; '.join(differing)}")
            if folder.finished:
                folder._progress.remove()  # left by a process that was killed right after it had written the record
                return folder
            folder._progress.blocks.refuse_strays()
        folder._begin(model, tokenizer)
        return folder

    @property
    def begun(self) -> bool:
        """Whether this folder holds a run, finished or not."""
        return self.finished or self._progress.begun

    @property
    def finished(self) -> bool:
        """Whether the run in this folder is complete and was checked."""
        return (self.path / RECORD_NAME).is_file()

    @property
    def notices(self) -> list[str]:
        """What the user must see about the finished run in this folder."""
        found: list[str] = read_record(self.path)["notes"]["notices"]
        return found

    @property
    def solved_blocks(self) -> list[int]:
        """Indices of the blocks whose masks are recorded here, ascending."""
        return self._progress.blocks.solved

    def load(self, block_index: int) -> BlockRecord | None:
        """Return a block's record from the interrupted run, or None if it has to be solved.

        Blocks are requested in the order of execution, which need not be that of their indices. When one is missing,
        the records not requested before are dropped: they were solved on inputs from a block that will now be solved
        again.

        Raises:
            RelaxPruneError: if the file is damaged or lacks a certificate; delete it to solve the block again.
        """
        blocks = self._progress.blocks
        if not blocks.path(block_index).is_file():
            self._drop_unused(block_index)
            return None
        record = blocks.load(block_index)
        lacking = self._progress.certificates.missing(record.masks) if self._progress.certified else []
        if lacking:
            path = str(blocks.path(block_index))
            raise RelaxPruneError(
                f"the certificate of {lacking[0]!r} is missing; delete {path!r} to solve its block again"
            )
        self._used.add(block_index)
        return record

    def save(self, block_index: int, record: BlockRecord) -> None:
        """Record a finished block durably: masks and reports in one file, whole or not at all."""
        self._progress.blocks.save(block_index, record)
        self._used.add(block_index)

    def load_allocation(self) -> dict[str, int] | None:
        """Return how the interrupted run shares its sparsity, None if that is not decided yet.

        Raises:
            RelaxPruneError: if the file is damaged; delete it to have it decided again.
        """
        return self._progress.load_allocation()

    def save_allocation(self, counts: dict[str, int]) -> None:
        """Save durably how many entries of every row each layer loses."""
        self._progress.save_allocation(counts)

    def save_certificate(self, parameter: str, certificate: Certificate, problem: MaskProblem) -> None:
        """Save a layer's certificate durably; it counts once its block is recorded."""
        self._progress.certificates.save(parameter, certificate, problem)

    def finish(self, model: PreTrainedModel, report: PruneReport, notes: RunNotes) -> ReloadCheck:
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
        staging = self._progress.staging()
        model.save_pretrained(staging)
        self._surplus.tensors.append_to(staging)
        self._surplus.copy_files(staging)  # saving may have written some of them anew
        write_masks(staging / MASKS_NAME, report.masks)
        files = install_files(staging, self.path)
        if self._progress.certified:
            files += self._progress.certificates.install()
            self._progress.certificates.check(report.layers)
        checked = verify_saved_model(self.path, model, read_masks(self.path), self._surplus)
        layers = [layer.to_dict() for layer in report.layers]
        write_text(self.path / "README.md", model_card(notes, self.fingerprint, layers))
        record = run_record(self.fingerprint, report, notes, checked)
        names = {*files, *(path.name for path in self.path.iterdir() if path.is_file())}
        write_json(self.path / RECORD_NAME, record | {"files": list_files(self.path, names)})
        shutil.rmtree(self._progress.folder)
        sync_folder(self.path)
        return checked

    def verify_files(self) -> int:
        """Compare every file of a finished run with its record; see ``run_record.verify_files``."""
        return verify_files(self.path)

    def abandon(self) -> None:
        """Remove everything a run wrote if it ended before its first block: bad input must leave nothing behind."""
        if self.finished or self.solved_blocks:
            return
        for path in self._written:
            path.unlink(missing_ok=True)
        self._progress.remove()
        for folder in self._made:
            with suppress(OSError):  # somebody else's files lie in it by now
                folder.rmdir()

    def _begin(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Write the fingerprint first, so that any later crash can be resumed, then the model's settings."""
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        sweep_scratch(self.path)
        self._progress.begin(self.fingerprint)
        staging = self._progress.staging()
        try:
            save_settings(model, tokenizer, staging)
            self._surplus.copy_files(staging)
            inner = (self.path / path.relative_to(staging) for path in staging.rglob("*") if path.is_dir())
            self._made[:0] = sorted((folder for folder in inner if not folder.exists()), reverse=True)
            self._written = [self.path / name for name in install_files(staging, self.path)]
        except RelaxPruneError:
            self.abandon()
            raise

    def _stored_fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint of the run in this folder, finished or not."""
        if not self.finished:
            return self._progress.fingerprint()
        stored: dict[str, Any] = read_record(self.path)["fingerprint"]
        return stored

    def _drop_unused(self, block_index: int) -> None:
        """Delete the records that this session has not used so far, since block ``block_index`` has none."""
        for index in sorted({*self.solved_blocks} - self._used):
            _logger.warning("block %d has no record: block %d is solved again", block_index, index)
            self._progress.blocks.delete(index)
