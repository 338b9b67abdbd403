"""The folder a pruning run writes: a model that transformers loads, its masks, a record of every number, a model card.

While a run is under way its progress lies in ``.relaxprune/`` inside the folder, each finished block in a file of its
own, written durably the moment the block is done, and listed with its checksum. ``finish`` writes the model, reloads
it, checks it, and writes ``relaxprune.json`` last: a folder that has this file is complete and checked.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relaxprune.models.loading import LoadedModel
from relaxprune.models.rotated_blocks import changes_bases
from relaxprune.models.saved_model import ReloadCheck, save_settings, verify_saved_model
from relaxprune.models.surplus import Surplus
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.block_record import BlockRecord, RefinementRecord
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.support.durable import install_files, sweep_scratch, sync_folder, write_json, write_text
from relaxprune.support.folder_lock import folder_lock
from relaxprune.support.json_files import sealed
from relaxprune.support.outputs import refuse_unwritable_folder
from relaxprune.support.sentences import first_line

from .fingerprint import Fingerprint, as_now, changes
from .mask_file import read_masks
from .model_card import CARD_NAME, model_card
from .model_files import file_names, write_model
from .rotated_model import dense_files
from .run_progress import RunProgress
from .run_record import RECORD_NAME, RunNotes, list_files, read_record, run_record, verify_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from relaxprune.certificates import Certificate
    from relaxprune.problems import MaskProblem
    from relaxprune.text.kept_samples import ModelSamples

_logger = logging.getLogger("relaxprune")


class RunFolder:
    """One run's folder; records finished blocks, certificates and the refinement, and writes the result.

    Make one with ``open``; ``path`` and ``fingerprint`` are then fixed.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Hold the folder ``path`` for the run with this fingerprint; writes nothing (see ``open``)."""
        self.path = path
        self.fingerprint = dict(fingerprint)
        self._progress = RunProgress(path, self.fingerprint.get("settings", {}))
        self._made: list[Path] = []  # folders, innermost first
        self._used: set[int] = set()
        self._surplus = Surplus()

    @staticmethod
    def hold(path: str | Path) -> AbstractContextManager[None]:
        """Return what holds a folder for this process alone, from before any work until its run has ended.

        Raises:
            RelaxPruneError: ``path`` cannot be written to; on entering, if a run is under way in it; on leaving with an
                error, if it was removed meanwhile.
        """
        refuse_unwritable_folder(Path(path))
        return folder_lock(Path(path))

    @staticmethod
    def refuse_occupied(path: str | Path, resume: bool = False) -> None:
        """Refuse a folder that a run may not write to; call it before any work.

        A folder counts as empty if it holds only what a run left that was killed before its first block.

        Args:
            path: the output folder.
            resume: whether to continue an interrupted run in it.

        Raises:
            RelaxPruneError: if ``path`` is a file, cannot be written to, or is not empty and is not a run to be
                resumed.
        """
        path = Path(path)
        folder = RunFolder(path, {})
        refuse_unwritable_folder(path)
        if folder._vacant or (resume and folder.begun):
            return
        if resume:
            raise RelaxPruneError(f"output folder {str(path)!r} is not empty and holds no relaxprune run to resume")
        more = ", or add --resume to continue the run in it" if folder.begun and not folder.finished else ""
        raise RelaxPruneError(f"output folder {str(path)!r} is not empty; name a new one{more}")

    @classmethod
    def open(
        cls,
        path: str | Path,
        loaded: LoadedModel,
        fingerprint: Fingerprint,
        *,
        samples: ModelSamples | None = None,
        resume: bool = False,
        discard_damaged: bool = False,
    ) -> RunFolder:
        """Start a run in a new folder, or continue the one in it.

        Saves config, generation config, tokenizer and the source's other files at once.

        Args:
            path: the output folder, new or empty; with ``resume`` it may hold a run with an equal fingerprint.
            loaded: the model before pruning, its tokenizer, and what its source holds beside them.
            fingerprint: what decides the result.
            samples: the calibration windows that the model wrote, to be kept until the run is finished; None for none.
            resume: continue an interrupted run.
            discard_damaged: make again what is damaged of it; else that is refused.

        Returns:
            The folder, ready to record blocks.

        Raises:
            RelaxPruneError: if the folder is occupied, the stored run differs (naming how), a file of it is damaged, or
                the model's settings cannot be saved; then nothing is left behind.
        """
        cls.refuse_occupied(path, resume)
        folder = cls(Path(path), fingerprint.to_dict())
        folder._surplus = loaded.surplus
        if not folder.finished and not resume:
            folder._progress.clear()  # left by a process that was killed before it had done anything
        if folder.begun:
            folder._continue(discard_damaged)
        if not folder.finished:
            folder._begin(loaded, samples)
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
    def rotated(self) -> bool:
        """Whether the run in this folder, finished or not, is of a model that it rotated."""
        return bool(self._stored_fingerprint()["model"].get("rotation"))

    @property
    def notices(self) -> list[str]:
        """What the user must see about the finished run in this folder."""
        found: list[str] = read_record(self.path)["notes"]["notices"]
        return found

    @property
    def solved_blocks(self) -> list[int]:
        """Indices of the blocks whose masks are recorded here, ascending."""
        return self._progress.solved

    def load(self, block_index: int) -> BlockRecord | None:
        """Return a block's record from the interrupted run, or None if it has to be solved.

        Blocks are requested in the order of execution, which need not be that of their indices. When one is missing,
        the records not requested before are dropped: they were solved on inputs from a block that will now be solved
        again.

        Raises:
            RelaxPruneError: if the file is damaged or lacks a certificate; delete it to solve the block again.
        """
        record = self._progress.load_block(block_index)
        if record is None:
            self._drop_unused(block_index)
            return None
        lacking = self._progress.certificates.missing(record.masks) if self._progress.certified else []
        if lacking:
            path = str(self._progress.blocks.path(block_index))
            raise RelaxPruneError(
                f"the certificate of {lacking[0]!r} is missing; delete {path!r} to solve its block again"
            )
        self._used.add(block_index)
        return record

    def save(self, block_index: int, record: BlockRecord) -> None:
        """Record a finished block durably: it counts whole or not at all."""
        self._progress.save_block(block_index, record)
        self._used.add(block_index)

    def load_samples(self) -> ModelSamples | None:
        """Return the calibration windows that the model wrote for the interrupted run, None if it has to write them.

        Raises:
            RelaxPruneError: if the file is damaged; delete it to have the model write them again.
        """
        return self._progress.load_samples()

    def load_allocation(self) -> dict[str, int] | None:
        """Return how the interrupted run shares its sparsity, None if that is not decided yet.

        Raises:
            RelaxPruneError: if the file is damaged; delete it to have it decided again.
        """
        return self._progress.load_allocation()

    def save_allocation(self, counts: dict[str, int]) -> None:
        """Save durably how many entries of every row each layer loses."""
        self._progress.save_allocation(counts)

    def load_refinement(self) -> RefinementRecord | None:
        """Return the refinement of the whole model from the interrupted run, None if it has to be made.

        Raises:
            RelaxPruneError: if the file is damaged; delete it to have the model refined again.
        """
        return self._progress.load_refinement()

    def save_refinement(self, record: RefinementRecord) -> None:
        """Record the refinement of the whole model durably."""
        self._progress.save_refinement(record)

    def save_certificate(self, parameter: str, certificate: Certificate, problem: MaskProblem) -> None:
        """Keep a layer's certificate, durably; it counts once its block is recorded."""
        self._progress.save_certificate(parameter, certificate, problem)

    def finish(
        self, model: PreTrainedModel, report: PruneReport, notes: RunNotes, shard_bytes: int | None = None
    ) -> ReloadCheck:
        """Write the result, reload it from disk, check it, and only then declare the run finished.

        Args:
            model: the pruned model, in the dtype to be saved.
            report: the run's report; ``masks.safetensors`` gets its masks.
            notes: command, base model, licence, notices.
            shard_bytes: most that a weight file holds, unless a single tensor is larger; None for 50 GB.

        Returns:
            What the reload confirmed.

        Raises:
            RelaxPruneError: if the reloaded files are not exactly what was meant.
        """
        files = write_model(self.path, self._progress, model, report, self._surplus, shard_bytes)
        checked = self._reload(model)
        layers = [layer.to_dict() for layer in report.layers]
        write_text(self.path / CARD_NAME, model_card(notes, self.fingerprint, layers, own_loader=changes_bases(model)))
        record = run_record(self.fingerprint, report, notes, checked)
        write_json(self.path / RECORD_NAME, sealed(record | {"files": list_files(self.path, files)}))
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
        self._progress.clear()
        for folder in self._made:
            with suppress(OSError):  # somebody else's files lie in it by now
                folder.rmdir()

    @property
    def _vacant(self) -> bool:
        return not self.finished and self._progress.vacant

    def _continue(self, discard_damaged: bool) -> None:
        """Check the run that is there, finished or not, against this one and against damage."""
        if discard_damaged and not self.finished:
            for what in self._progress.discard_damaged(self.fingerprint):
                _logger.warning("damaged, and discarded: %s", what)
        elif not self.finished:
            self._progress.check()
        if not self.begun:
            return
        if differing := changes(as_now(self._stored_fingerprint()), as_now(self.fingerprint)):
            raise RelaxPruneError(f"cannot resume the run in {str(self.path)!r}: {'; '.join(differing)}")
        if self.finished:
            self._progress.remove()  # left by a process that was killed right after it had written the record

    def _begin(self, loaded: LoadedModel, samples: ModelSamples | None) -> None:
        """Write the fingerprint first, so that any later crash can be resumed, then the model's settings."""
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            sweep_scratch(self.path)
            staging = self._progress.staging()
            save_settings(loaded.model, loaded.tokenizer, staging)
            loaded.surplus.copy_files(staging)
            inner = (self.path / path.relative_to(staging) for path in staging.rglob("*") if path.is_dir())
            self._made[:0] = sorted((folder for folder in inner if not folder.exists()), reverse=True)
            self._progress.begin(self.fingerprint, [*file_names(staging), *dense_files(self.path)], samples)
            install_files(staging, self.path)
            for folder in self._made:
                sync_folder(folder.parent)
        except BaseException:
            self.abandon()
            raise

    def _reload(self, model: PreTrainedModel) -> ReloadCheck:
        """Compare what was written with what was meant.

        Raises:
            RelaxPruneError: it is not the same.
            OSError: it cannot be read; transformers says so in errors of many kinds.
        """
        try:
            return verify_saved_model(self.path, model, read_masks(self.path), self._surplus)
        except RelaxPruneError:
            raise
        except Exception as error:
            told = isinstance(error, OSError) and error.errno is not None
            if told or not isinstance(error, OSError):
                raise
            reason = f"the saved model cannot be read back ({first_line(error)})"
            raise OSError(errno.EIO, reason, str(self.path)) from error

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
            self._progress.delete_block(index)
