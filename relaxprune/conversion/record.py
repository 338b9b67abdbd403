"""``conversion.json``: what a converted folder states about itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs.mask_file import MASKS_NAME
from relaxprune.support.durable import file_sha256, write_json
from relaxprune.support.json_files import JsonFormat, Maybe, Values, is_sealed, read_document, sealed
from relaxprune.support.machine import machine_line
from relaxprune.support.sentences import damaged

CONVERSION_NAME = "conversion.json"
_FORM = JsonFormat(
    version=1,
    shape={
        **{name: str for name in ("target", "run", "masks_sha256", "dtype", "kernel", "machine")},
        **{name: int for name in ("layers", "pruned", "disk_bytes", "dense_disk_bytes")},
        **{name: int for name in ("memory_bytes", "dense_memory_bytes")},
        **{name: Maybe(int) for name in ("dense_bits", "dense_form_bytes")},
        "left": [{"parameter": str, "reason": str}],
        **{name: Values(float) for name in ("difference", "from_dense")},
        "tolerance": float,
    },
    advice="convert the run again",
)


def write_conversion(folder: Path, found: Mapping[str, Any]) -> None:
    """Write what was found of a conversion into its folder."""
    write_json(folder / CONVERSION_NAME, sealed({"schema_version": 1, **found, "machine": machine_line()}))


def read_conversion(folder: Path) -> dict[str, Any]:
    """Read a converted folder's record.

    Raises:
        RelaxPruneError: there is none, or it is damaged.
    """
    path = folder / CONVERSION_NAME
    if not path.is_file():
        raise RelaxPruneError(f"{str(folder)!r} is not a converted folder (it has no {CONVERSION_NAME})")
    content = read_document(path, _FORM)
    if not is_sealed(content):
        raise damaged(repr(str(path)), "its checksum does not match its content", _FORM.advice)
    return content


def masks_sha256(run: Path) -> str:
    """Return the SHA-256 of a run's mask file."""
    return file_sha256(run / MASKS_NAME)
