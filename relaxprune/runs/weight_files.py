"""New values of the weights that moved, block by block, while a run is in progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.container import TensorFormat, read_container, write_container

WEIGHT_FILE = TensorFormat(kind="weight file", name="relaxprune.weights")


class WeightFiles:
    """One safetensors file for each finished block.

    Args:
        folder: for the files; created with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, block: int, weights: Mapping[str, Tensor]) -> Path:
        """Keep a block's weights, (rows, cols) each, durably: whole or not at all; returns the file's path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_container(self._path(block), WEIGHT_FILE, weights, {})
        return self._path(block)

    def load(self, block: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Return a block's weights.

        Raises:
            RelaxPruneError: the file is missing or damaged, or has other parameters than ``names``.
        """
        path = self._path(block)
        try:
            weights = read_container(path, WEIGHT_FILE)[0]
        except (OSError, RelaxPruneError) as error:
            raise RelaxPruneError(f"{str(path)!r} cannot be read: delete the record of block {block}") from error
        if set(weights) != set(names):
            raise RelaxPruneError(f"{str(path)!r} does not hold the layers of block {block}: delete its record")
        return weights

    def _path(self, block: int) -> Path:
        return self.folder / f"{block:05d}.safetensors"
