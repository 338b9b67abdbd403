"""New values of weights that moved, block by block, while a run is under way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.durable import write_bytes


class WeightFiles:
    """One safetensors file for each finished block.

    Args:
        folder: of the files; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, block: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a block's weights, (rows, cols) each, durably: whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path(block), save({name: tensor.contiguous() for name, tensor in weights.items()}))

    def load(self, block: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Return a block's weights.

        Raises:
            RelaxPruneError: the file is missing or damaged, or is of other parameters than ``names``.
        """
        path = self._path(block)
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RelaxPruneError(f"{str(path)!r} cannot be read: delete the record of block {block}") from error
        if set(weights) != set(names):
            raise RelaxPruneError(f"{str(path)!r} is not of the layers of block {block}: delete its record")
        return weights

    def _path(self, block: int) -> Path:
        return self.folder / f"{block:05d}.safetensors"
