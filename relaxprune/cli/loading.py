"""From the words of the command line to the loaded model and its token windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.pruning import loading
from relaxprune.pruning.calibration import CalibrationOptions, TokenWindows, calibration_windows, evaluation_windows

if TYPE_CHECKING:
    from .option_groups import CalibrationGroup, ModelGroup


def load_model(source: str, group: ModelGroup) -> loading.LoadedModel:
    """Load a model as a command's options ask for, without the bars that transformers draws for each file."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = loading.LoadOptions(
        device=group.device,
        dtype=group.dtype,
        revision=group.revision,
        cache_dir=None if group.cache_dir is None else str(group.cache_dir),
        attn_implementation=group.attn_implementation,
        trust_remote_code=group.trust_remote_code,
    )
    return loading.load_model(source, options)


def calibration_tokens(group: CalibrationGroup, loaded: loading.LoadedModel, seed: int) -> TokenWindows:
    """Return the calibration windows that a command's options ask for."""
    options = CalibrationOptions(windows=group.windows, length=group.length, seed=seed)
    return calibration_windows(group.calibration, loaded.tokenizer, options, model=loaded.model)


def evaluation_tokens(source: str, loaded: loading.LoadedModel, windows: int, length: int) -> TokenWindows:
    """Return windows of the part of a text that calibration never sees."""
    return evaluation_windows(source, loaded.tokenizer, CalibrationOptions(windows=windows, length=length))
