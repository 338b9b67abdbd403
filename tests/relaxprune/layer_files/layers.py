"""Layer files for these tests: tiny ones, and ones that are broken in a way of their own."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ...random_problems import Draw

BROKEN = {"cut": "it is truncated", "lacking": "has no tensor 'gram'", "nan": "holds NaN or Inf"}


def write_layer(file: Path, seed: int, rows: int = 4, cols: int = 8) -> Path:
    """Write a layer that depends on the seed alone."""
    draw = Draw(seed)
    inputs = draw.normal(3 * cols, cols).float()
    save_file({"weight": draw.normal(rows, cols).float(), "gram": inputs.T @ inputs / len(inputs)}, file)
    return file


def write_layers(folder: Path, count: int) -> list[Path]:
    """Write so many layers, all different, into a new folder."""
    folder.mkdir()
    return [write_layer(folder / f"layer{number:03}.safetensors", number) for number in range(count)]


def break_file(file: Path, how: str) -> None:
    """Make a layer's file one of ``BROKEN``."""
    if how == "cut":
        file.write_bytes(file.read_bytes()[:60])
    elif how == "lacking":
        save_file({"weight": torch.ones(4, 8)}, file)
    else:
        save_file({"weight": torch.full((4, 8), torch.nan), "gram": torch.eye(8)}, file)
