"""The records of a run's finished blocks: held, or read again from where they were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .block_record import BlockRecord, BlockRecorder
from .channels.reorder import apply_permutations


@dataclass(eq=False)
class KeptRecords:
    """The records of finished blocks, in memory.

    Attributes:
        masks: parameter name -> (rows, cols) bool on the CPU, True = kept.
        weights: parameter name -> (rows, cols) on the CPU, the new values of weights that moved.
    """

    masks: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    _records: dict[int, BlockRecord] = field(default_factory=dict)

    @classmethod
    def of(cls, recorder: BlockRecorder | None, travels: bool) -> KeptRecords:
        """Return what keeps the records of a run; those of a model that is not in memory are read from its recorder."""
        return RereadRecords(recorder) if travels and recorder is not None else cls()

    def add(self, index: int, record: BlockRecord) -> None:
        """Keep the record of a block."""
        self.masks = {**self.masks, **record.masks}
        self.weights = {**self.weights, **record.weights}
        self._records[index] = record

    def record(self, index: int) -> BlockRecord:
        """Return the record of a block."""
        return self._records[index]


class RereadRecords(KeptRecords):
    """The records of finished blocks, read from its recorder when they are asked for, if it can; the last is held."""

    def __init__(self, recorder: BlockRecorder) -> None:
        self._recorder = recorder
        self._blocks: dict[str, int] = {}
        self._moved: dict[str, int] = {}
        self._last: tuple[int, BlockRecord] | None = None
        super().__init__(_Reread(self, self._blocks, "masks"), _Reread(self, self._moved, "weights"))

    def add(self, index: int, record: BlockRecord) -> None:
        """Note which block has the records of which parameters; hold a record that the recorder does not give back."""
        self._blocks |= dict.fromkeys(record.masks, index)
        self._moved |= dict.fromkeys(record.weights, index)
        if self._recorder.load(index) is None:
            self._records[index] = record

    def record(self, index: int) -> BlockRecord:
        """Return the record of a block.

        Raises:
            RelaxPruneError: the recorder does not have it any more.
        """
        if index in self._records:
            return self._records[index]
        if self._last is None or self._last[0] != index:
            self._last = None
            found = self._recorder.load(index)
            if found is None:
                raise RelaxPruneError(f"the recorder must give back the record of block {index}, got none")
            self._last = (index, found)
        return self._last[1]


class _Reread(Mapping[str, Tensor]):
    """The masks or weights of records that are read again."""

    def __init__(self, kept: RereadRecords, blocks: Mapping[str, int], name: str) -> None:
        self._kept, self._blocks, self._name = kept, blocks, name

    def __getitem__(self, parameter: str) -> Tensor:
        """Read one."""
        found: Tensor = getattr(self._kept.record(self._blocks[parameter]), self._name)[parameter]
        return found

    def __iter__(self) -> Iterator[str]:
        """Iterate over the parameters' names."""
        return iter(self._blocks)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._blocks)


def write_record(model: nn.Module, layers: Mapping[str, PrunableLayer], record: BlockRecord) -> None:
    """Make a dense block what its record says.

    Args:
        model: the block's model.
        layers: parameter name -> layer, with all that the record has a mask for.
        record: of the block.
    """
    apply_permutations(model, record.permutations)
    for parameter, mask in record.masks.items():
        layers[parameter].write(mask, record.weights.get(parameter))
