"""``relaxprune apply``: the masks of a package on the dense model that they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .endings import door


def apply_masks(
    masks: Annotated[Path, typer.Argument(help="A folder that `masks export` wrote.")],
    model: Annotated[str, typer.Argument(help="The dense model: hub id, folder, .gguf file, or alias.")],
    out: Annotated[Path, typer.Option(help="Output folder, new or empty.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model; by default the one that was pruned.")
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder for downloaded models.")] = None,
    shard_size: Annotated[
        str | None, typer.Option(help="Most that a weight file holds, such as 5GB; say what the run said.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model (off).")
    ] = False,
) -> None:
    """Check that a dense model is the one that masks are for, and write the pruned model, bit for bit."""
    from transformers.utils import logging

    from relaxprune.masks import apply_package
    from relaxprune.models import LoadOptions
    from relaxprune.support.sizes import parse_bytes

    shard_bytes = None if shard_size is None else parse_bytes("--shard-size", shard_size)
    logging.disable_progress_bar()
    cache = None if cache_dir is None else str(cache_dir)
    with door():
        options = LoadOptions(revision=revision, cache_dir=cache, trust_remote_code=trust_remote_code)
        found = apply_package(masks, model, out, options, shard_bytes=shard_bytes)
    checked = found.checked
    print(
        f"{out}: {checked.tensors} tensors, those of the pruned {found.base_model} bit for bit; "
        f"{checked.pruned_weights} weights of {checked.pruned_layers} layers exactly zero; {found.identical} of "
        f"{found.files} files as the run wrote them, byte for byte"
    )
