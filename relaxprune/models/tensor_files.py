"""The weight files of a checkpoint, read tensor by tensor; what is wrong with one is said in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from relaxprune.problems.errors import RelaxPruneError

from .checkpoint import check_weights, first_line, weight_files


def checked_weights(folder: Path) -> list[str]:
    """Return the names of a checkpoint's weight files, each there and of the size that its header declares.

    Raises:
        RelaxPruneError: no such folder, no weights in safetensors, or damaged ones.
    """
    if not folder.is_dir():
        raise RelaxPruneError(f"model folder {str(folder)!r} does not exist: give one with weights in safetensors")
    names = weight_files(folder)
    check_weights(folder, names)
    return names


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file for its tensors.

    Raises:
        RelaxPruneError: the file is not whole; also where only the body notices.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, UnicodeDecodeError) as error:
        raise RelaxPruneError(f"{str(path)!r} is damaged or truncated: {first_line(error)}") from error
