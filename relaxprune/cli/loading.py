"""From the words of the command line to the options of loading, and the loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.models import LoadedModel, LoadOptions
from relaxprune.models import load_model as load

if TYPE_CHECKING:
    from .option_groups import ModelGroup


def load_options(group: ModelGroup) -> LoadOptions:
    """Return how a command's options ask for the model to be loaded, checked."""
    return LoadOptions(
        device=group.device,
        dtype=group.dtype,
        revision=group.revision,
        cache_dir=None if group.cache_dir is None else str(group.cache_dir),
        attn_implementation=group.attn_implementation,
        trust_remote_code=group.trust_remote_code,
    )


def load_model(source: str, options: LoadOptions) -> LoadedModel:
    """Load a model and try it, without transformers' bars, and without its warnings from then on.

    Raises:
        RelaxPruneError: as ``relaxprune.load_model`` does, or the model cannot be run.
    """
    from relaxprune.models.loading import check_running

    silence()
    loaded = load(source, options)
    check_running(loaded)
    return loaded


def silence() -> None:
    """Keep transformers' bars and warnings off the terminal from now on."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
