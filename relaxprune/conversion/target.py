"""The protocol of a target: which weights it takes, how they are written, and how they are read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from relaxprune.models.checkpoint import DESCRIPTION_FILES, INDEX_FILE
from relaxprune.models.layers import PrunableLayer
from relaxprune.runs.evaluation_file import EVALUATION_NAME
from relaxprune.runs.finished_run import FinishedRun
from relaxprune.runs.run_record import RECORD_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a run's folder; a converted one is no run.
_OWN_FILES = (RECORD_NAME, EVALUATION_NAME, INDEX_FILE, "report.json")


@dataclass(frozen=True)
class LeftAsItIs:
    """A pruned weight that a target does not take.

    Attributes:
        parameter: its name in the model.
        reason: a clause.
    """

    parameter: str
    reason: str


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be converted.

    Attributes:
        run: the run, read and checked.
        model: its model on the CPU, cast to the target's dtype.
        layers: the pruned layers that the target takes.
    """

    run: FinishedRun
    model: PreTrainedModel
    layers: tuple[PrunableLayer, ...]


@dataclass(frozen=True, eq=False)
class ConvertedModel:
    """A converted model, read from its folder.

    Attributes:
        logits: from token ids (windows, length), int64 on the CPU, to logits (windows, length, vocabulary).
        weights: parameter name -> a call that returns the weight (rows, cols) as the form holds it, dense.
        memory_bytes: of all weights in memory, where the runtime multiplies with the form as it is.
        kernel: what multiplies with the converted weights; "" if they were unpacked to dense ones.
        model: the transformers model; None if another runtime runs it.
        modules: module name -> a converted layer that can be called by itself; {} if the runtime has none.
    """

    logits: Callable[[Tensor], Tensor]
    weights: Mapping[str, Callable[[], Tensor]]
    memory_bytes: int
    kernel: str
    model: PreTrainedModel | None = None
    modules: Mapping[str, nn.Module] = field(default_factory=dict)


class Target(ABC):
    """A form that a run can be converted to.

    Attributes:
        name: as ``--to`` takes it.
        summary: one line for the list of targets.
        package: what has to be importable; "" if nothing besides relaxprune's own dependencies.
        extra: of relaxprune, which installs it.
        kinds: the kinds of layers whose weights it takes, as in ``PrunableLayer.kind``; {} takes everything as it is.
        tolerance: largest relative difference between the logits of a kernel and of the same weights in a dense model.
        explains: where that difference comes from.
        besides: what bytes and times of the form owe to something else than zeros; "" if nothing.
        dense_bits: the most bits of an entry of the dense model that the form's bytes are held against.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    package: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    kinds: ClassVar[Mapping[str, str]] = {}
    tolerance: ClassVar[float]
    explains: ClassVar[str]
    besides: ClassVar[str] = ""
    dense_bits: ClassVar[int] = 64

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        """Return the dtype that a model is cast to before it is converted, from the one that it is stored in."""
        return stored

    def reason(self, layer: PrunableLayer) -> str:
        """Say why a layer's weight, in the target's dtype, is left as it is; "" if it is taken."""
        return ""

    @abstractmethod
    def write(self, job: Job, folder: Path) -> None:
        """Write the converted model into an empty folder."""

    @abstractmethod
    def files(self, folder: Path) -> list[Path]:
        """Return the files with weights that ``write`` made."""

    @abstractmethod
    def read(self, folder: Path, device: torch.device) -> ConvertedModel:
        """Read a folder that ``write`` made, and put the model on a device.

        Raises:
            RelaxPruneError: it is damaged, or the target has nothing that runs there.
        """

    @abstractmethod
    def rounding(self, weight: Tensor) -> Tensor:
        """Return by how much each entry of a stored weight (rows, cols) may change, in float64."""


def copy_description(run: Path, folder: Path) -> None:
    """Copy what describes a run's model and its tokenizer, without what makes the folder a run's."""
    for pattern in DESCRIPTION_FILES:
        for path in sorted(run.glob(pattern)):
            if path.is_file() and path.name not in _OWN_FILES:
                (folder / path.name).write_bytes(path.read_bytes())
