"""What a source holds beside the model that is made of it: tensors that the model does not use, and files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .side_files import copy_side_files, side_files
from .sources import Checkpoint
from .unused_tensors import UnusedTensors, find_unused, find_unused_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Surplus:
    """What belongs to the folder of a pruned model beside the model: it must come out as it went in.

    Attributes:
        tensors: those that the model does not use.
        folder: of the files; None where the source is no folder of a model's own.
        files: paths in it.
    """

    tensors: UnusedTensors = field(default_factory=UnusedTensors)
    folder: Path | None = None
    files: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel, checkpoint: Checkpoint) -> Surplus:
        """Look through a source, before any work on the model that was loaded from it.

        Raises:
            RelaxPruneError: something in it could not be carried over.
        """
        if checkpoint.gguf_file is not None:
            return cls(find_unused_gguf(model, checkpoint.folder / checkpoint.gguf_file))
        unused = find_unused(model, checkpoint.folder)
        return cls(unused, checkpoint.folder, tuple(side_files(checkpoint.folder)))

    def copy_files(self, out: Path) -> None:
        """Copy the files to the same places in ``out``."""
        if self.folder is not None:
            copy_side_files(self.folder, self.files, out)

    def differing_files(self, out: Path) -> list[str]:
        """Return the files that ``out`` does not hold byte for byte."""
        if self.folder is None:
            return []
        pairs = {name: (self.folder / name, out / name) for name in self.files}
        return [
            name
            for name, (source, copy) in pairs.items()
            if not copy.is_file() or source.read_bytes() != copy.read_bytes()
        ]
