"""What learners are given: the matrices that a rotation touches, block by block, made when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.models.layers import find_layers
from relaxprune.options.target import Target
from relaxprune.problems.errors import RelaxPruneError

from .block_stream import Reader
from .learners.base import ReadMatrix, Touched, WrittenMatrix
from .moments import BlockMoments
from .norms import gain_of
from .places import Place, Turn
from .structure import Structure
from .value_heads import ValuePath


@dataclass(frozen=True, eq=False)
class Material:
    """A model and what is known of it.

    Attributes:
        model: not rotated yet.
        structure: what turns in it.
        moments: of its inputs, block by block.
        shrinkage: share by which Grams shrink to their diagonals.
        target: the masks that are meant to follow; what they do not fit is not pruned, and teaches nothing.
    """

    model: nn.Module
    structure: Structure
    moments: Sequence[BlockMoments]
    shrinkage: float
    target: Target

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that is computed in: float32 or better."""
        return torch.promote_types(next(self.model.parameters()).dtype, torch.float32)

    def gains(self, index: int) -> dict[str, Tensor | None]:
        """Return norm -> its gain, of the norms that read the stream in a block; None for one that has none."""
        block = self.structure.blocks.modules[index]
        norms = self.structure.streams[index].norms
        return {norm.module: gain_of(block.get_submodule(norm.module), norm.unit) for norm in norms}

    def gram(self, accumulator: GramAccumulator) -> Tensor:
        """Return a Gram, shrunk."""
        gram = accumulator.gram().to(self.dtype)
        return torch.lerp(gram, torch.diag(gram.diagonal()), self.shrinkage)


class StreamLesson(Sequence[Touched]):
    """What a rotation of the residual stream touches: the matrices that can be pruned, gains folded in."""

    def __init__(self, material: Material) -> None:
        """Take what is known of a model."""
        self._material = material
        self._totals: dict[tuple[int, Place], Tensor] = {}
        self._prunable = {id(layer.weight) for layer in find_layers(material.model)[0]}
        self._refuse_empty()

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._material.moments)

    @overload
    def __getitem__(self, index: int) -> Touched: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Touched]: ...
    def __getitem__(self, index: int | slice) -> Touched | Sequence[Touched]:
        """Return what is touched in one block, or in several."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if index >= len(self):
            raise IndexError(index)
        material = self._material
        block, moments = material.structure.blocks.modules[index], material.moments[index]
        stream, gains = material.structure.streams[index], material.gains(index)
        grams = {name: material.gram(accumulator) for name, accumulator in moments.grams.items()}
        reads = [
            self._read((index, reader.place), _folded(reader, block, gains).to(material.dtype), grams[reader.norm])
            for reader in stream.readers
            if self._pruned(reader.place, block)
        ]
        writes = [
            _written(place.values(block).to(material.dtype), moments.energy(place.module, place.shape(block)[1]))
            for place in stream.writers
            if self._pruned(place, block)
        ]
        return Touched(tuple(reads), tuple(writes))

    def _refuse_empty(self) -> None:
        """Raise RelaxPruneError for a block with nothing to learn from."""
        found = self._material.structure
        for name, block, stream in zip(found.blocks.names, found.blocks.modules, found.streams, strict=True):
            places = [reader.place for reader in stream.readers] + list(stream.writers)
            if not any(self._pruned(place, block) for place in places):
                raise RelaxPruneError(
                    f"target must fit a layer of every block to rotate the residual stream, got "
                    f"{self._material.target.words}, which fits none of {name!r}: leave the rotation out"
                )

    def _read(self, key: tuple[int, Place], weight: Tensor, gram: Tensor) -> ReadMatrix:
        """Return a matrix; its total, the same in every basis, is worked out once."""
        if key not in self._totals:
            self._totals[key] = ReadMatrix.of(weight, gram).total
        return ReadMatrix(weight, gram, self._totals[key])

    def _pruned(self, place: Place, block: nn.Module) -> bool:
        """Return whether a matrix can be pruned."""
        return id(place.parameter(block)) in self._prunable and self._material.target.fits(place.shape(block))


def _folded(reader: Reader, block: nn.Module, gains: dict[str, Tensor | None]) -> Tensor:
    """Return the values of a matrix with the gain of the norm that it reads folded in, (..., rows, cols) float64."""
    return Turn(gain=None if reader.norm is None else gains[reader.norm]).of(reader.place.values(block))


def _written(weight: Tensor, energy: Tensor) -> WrittenMatrix:
    """Return a matrix whose outputs turn, with the (cols,) mean squares of its inputs, of any dtype."""
    return WrittenMatrix.of(weight, energy.to(weight))


def head_lesson(
    material: Material, index: int, path: ValuePath, weights: tuple[Tensor, Tensor], energy: Tensor
) -> list[Touched]:
    """Return what each head of a value path touches.

    Args:
        material: what is known of the model.
        index: of the block.
        path: the heads.
        weights: of the producer and the consumer, (rows, cols) each, in the basis that the stream will have.
        energy: (cols,), the mean squares of the producer's inputs in it.

    Returns:
        For each head the slots of the consumer that read it, and the producer's rows that make it.
    """
    made, read = (weight.to(material.dtype) for weight in weights)
    slots = material.moments[index].heads[path.consumer]
    found = []
    for head, grams in zip(path.heads, slots, strict=True):
        reads = [
            ReadMatrix.of(read[:, slot], material.gram(gram)) for slot, gram in zip(head.columns, grams, strict=True)
        ]
        found.append(Touched(tuple(reads), (_written(made[head.rows], energy),)))
    return found
