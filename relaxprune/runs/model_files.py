"""The pruned model, its masks and its certificates: from the progress of a run to where they stay."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from relaxprune.models.saved_model import save_weights
from relaxprune.models.surplus import Surplus
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.support.durable import install_files

from .mask_file import MASKS_NAME, write_masks
from .model_card import CARD_NAME
from .run_progress import RunProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_model(
    path: Path,
    progress: RunProgress,
    model: PreTrainedModel,
    report: PruneReport,
    surplus: Surplus,
    shard_bytes: int | None = None,
) -> set[str]:
    """Write what a run gives into its folder, noting before what that is.

    Args:
        path: the run's folder.
        progress: of the run, all of whose blocks are finished.
        model: the pruned model, in the dtype to be saved.
        report: the run's report, with the masks.
        surplus: what the model's source holds beside it.
        shard_bytes: most that a weight file holds, as for ``save_weights``.

    Returns:
        The names of all files that the run has put there, and of the model card, which comes next.
    """
    staging, manifest = progress.staging(), progress.manifest
    try:
        save_weights(model, staging, surplus, shard_bytes)
        surplus.copy_files(staging)  # saving may have written some of them anew
        write_masks(staging / MASKS_NAME, report.masks)
        manifest.install({*file_names(staging), CARD_NAME})
        install_files(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # on a full disk, half a model is the worst to keep
        raise
    if progress.certified:
        manifest.install(progress.certificates.install())
        progress.certificates.check(report.layers)
    return manifest.installed


def file_names(folder: Path) -> list[str]:
    """Return the names of all files under a folder."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
