"""The folder of a rotated dense model inside a run's folder: its name, and how it is told from other things."""

from __future__ import annotations

import shutil
from pathlib import Path

DENSE_NAME, ROTATION_NAME = "dense", "rotation.json"


def sweep_parts(folder: Path) -> None:
    """Remove what is left in a run's folder of a rotated model whose writing was killed."""
    for part in folder.glob(f".{DENSE_NAME}.*.part"):
        shutil.rmtree(part, ignore_errors=True)


def is_own(path: Path) -> bool:
    """Tell whether something in a run's folder is a rotated model, or what a killed writer has left of one."""
    name = path.name
    part = name.startswith(f".{DENSE_NAME}.") and name.endswith(".part")
    return part or (name == DENSE_NAME and (path / ROTATION_NAME).is_file())
