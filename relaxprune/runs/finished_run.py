"""A finished run, read back from its folder and checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.layer_report import LayerReport
from relaxprune.support.json_files import present, read_json
from relaxprune.support.sentences import damaged

from .evaluation_file import Evaluation, read_evaluations
from .mask_file import MASKS_NAME, PackedMasks, open_mask_file
from .run_progress import WORK_NAME
from .run_record import RECORD_NAME, read_record


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run, as its folder holds it.

    Attributes:
        path: the folder.
        record: the content of ``relaxprune.json``.
        layers: its layers' reports.
        masks: parameter name -> (rows, cols) bool, True = kept; unpacked one by one.
        config: the content of ``config.json``; empty if there is none.
        evaluations: what ``relaxprune eval`` has recorded.
    """

    path: Path
    record: Mapping[str, Any]
    layers: list[LayerReport]
    masks: PackedMasks
    config: Mapping[str, Any]
    evaluations: list[Evaluation]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the fingerprint."""
        found: Mapping[str, Any] = self.record["fingerprint"]["settings"]
        return found


def read_finished_run(path: str | Path) -> FinishedRun:
    """Read a finished run's folder.

    Raises:
        RelaxPruneError: there is no run, it is not finished, or a file in it is damaged.
    """
    folder = Path(path)
    if folder.is_file():
        raise RelaxPruneError(f"{str(path)!r} is a file: give the run's folder")
    if not folder.is_dir():
        raise RelaxPruneError(f"run folder {str(path)!r} does not exist: give the folder of relaxprune prune --out")
    if not (folder / RECORD_NAME).is_file():
        begun = (folder / WORK_NAME).is_dir()
        state = "holds a run that is not finished: continue it with --resume" if begun else "is not a run's folder"
        raise RelaxPruneError(f"{str(path)!r} {state} (it has no {RECORD_NAME})")
    record = read_record(folder)
    try:
        layers = [LayerReport.from_dict(item) for item in record["report"]["layers"]]
    except RelaxPruneError as error:
        raise damaged(repr(str(folder / RECORD_NAME)), str(error)) from error
    if not (folder / MASKS_NAME).is_file():
        raise RelaxPruneError(f"run folder {str(path)!r} lacks its masks, {MASKS_NAME}")
    masks, _ = open_mask_file(folder)
    strange = [layer.parameter for layer in layers if masks.shapes.get(layer.parameter) != (layer.rows, layer.cols)]
    if strange:
        raise RelaxPruneError(f"{str(folder / MASKS_NAME)!r} has no mask of the reported shape for {strange[0]!r}")
    config = read_json(folder / "config.json") if present(folder / "config.json") else {}
    return FinishedRun(folder, record, layers, masks, config, read_evaluations(folder))
