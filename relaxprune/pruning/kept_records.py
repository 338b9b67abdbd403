"""The records of a run's finished blocks: held, or read again from where they were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.mask_bits import pack_mask, unpack_mask

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
        """Return what keeps the records of a run, in little memory if its model is not in memory either."""
        return RereadRecords(recorder) if travels else cls()

    def add(self, index: int, record: BlockRecord) -> None:
        """Keep the record of a block."""
        self.masks = {**self.masks, **record.masks}
        self.weights = {**self.weights, **record.weights}
        self._records[index] = record

    def record(self, index: int) -> BlockRecord:
        """Return the record of a block."""
        return self._records[index]


class RereadRecords(KeptRecords):
    """The records of finished blocks, read from a recorder when they are asked for.

    Those that it does not give back are held, masks as bits; so are all of a run without one.
    """

    def __init__(self, recorder: BlockRecorder | None) -> None:
        self._recorder = recorder
        self._packed: dict[int, tuple[BlockRecord, dict[str, tuple[int, ...]]]] = {}
        self._blocks: dict[str, int] = {}
        self._moved: dict[str, int] = {}
        self._last: tuple[int, BlockRecord] | None = None
        super().__init__(_Reread(self, self._blocks, "masks"), _Reread(self, self._moved, "weights"))

    def add(self, index: int, record: BlockRecord) -> None:
        """Note which block has the records of which parameters."""
        self._blocks |= dict.fromkeys(record.masks, index)
        self._moved |= dict.fromkeys(record.weights, index)
        if self._recorder is None or self._recorder.load(index) is None:
            bits = {name: pack_mask(mask) for name, mask in record.masks.items()}
            shapes = {name: tuple(mask.shape) for name, mask in record.masks.items()}
            self._packed[index] = (replace(record, masks=bits), shapes)

    def record(self, index: int) -> BlockRecord:
        """Return the record of a block.

        Raises:
            RelaxPruneError: the recorder does not have it any more.
        """
        if self._last is None or self._last[0] != index:
            self._last = None
            self._last = (index, self._found(index))
        return self._last[1]

    def _found(self, index: int) -> BlockRecord:
        """Unpack or read the record of a block."""
        if index in self._packed:
            record, shapes = self._packed[index]
            return replace(record, masks={name: unpack_mask(record.masks[name], shapes[name]) for name in shapes})
        found = None if self._recorder is None else self._recorder.load(index)
        if found is None:
            raise RelaxPruneError(f"the recorder must give back the record of block {index}, got none")
        return found


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
