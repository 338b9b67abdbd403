"""The finished blocks of a run in progress: one mask file each, with its reports, and the weights that moved."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.block_record import BlockRecord
from relaxprune.support.json_files import Values, misfit

from .mask_file import read_mask_file, write_masks
from .weight_files import WeightFiles

_NAME = re.compile(r"[0-9]{5,}\.safetensors")
_SHAPE = {"block": int, "layers": [dict], "permutations": [dict], "seconds": Values(float), "tunings": [dict]}


class BlockFiles:
    """The folders ``blocks`` and, if weights move block by block, ``weights`` of a run's progress.

    Args:
        work: the folder of the progress.
        moving: whether they do.
    """

    def __init__(self, work: Path, moving: bool) -> None:
        self.folder = work / "blocks"
        self._weights = WeightFiles(work / "weights") if moving else None

    @property
    def found(self) -> list[int]:
        """Indices of the blocks that have a file, ascending."""
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors") if _NAME.fullmatch(path.name))

    def refuse_strays(self) -> None:
        """Refuse files that no run wrote.

        Raises:
            RelaxPruneError: naming the first.
        """
        strays = sorted(path for path in self.folder.glob("*.safetensors") if not _NAME.fullmatch(path.name))
        if strays:
            raise RelaxPruneError(f"{str(strays[0])!r} is not a file of this run: move it elsewhere, or delete it")

    def path(self, block: int) -> Path:
        """Return the path of a block's file."""
        return self.folder / f"{block:05d}.safetensors"

    def save(self, block: int, record: BlockRecord) -> list[Path]:
        """Write a finished block durably, masks and reports in one file; returns all its files."""
        extra: dict[str, Any] = {"block": block, **record.facts()}
        moved = [] if self._weights is None else [self._weights.save(block, record.weights)]
        write_masks(self.path(block), record.masks, extra)
        return [self.path(block), *moved]

    def load(self, block: int) -> BlockRecord:
        """Return a block's record.

        Raises:
            RelaxPruneError: the file is damaged or is of another block; delete it to solve the block again.
        """
        masks, extra = read_mask_file(self.path(block))
        try:
            if misfit(extra, _SHAPE) or set(extra) != set(_SHAPE) or extra["block"] != block:
                raise ValueError("another record")
            record = BlockRecord.of(extra, masks, {})
        except (ValueError, TypeError, KeyError) as error:
            path = str(self.path(block))
            raise RelaxPruneError(
                f"{path!r} is not the record of block {block}; delete it to solve it again"
            ) from error
        return record if self._weights is None else replace(record, weights=self._weights.load(block, masks))
