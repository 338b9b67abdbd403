"""Second moments of what the matrices that turn read, from passes over the dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.inputs.batches import Batch, run_model
from relaxprune.inputs.gram_accumulator import GramAccumulator, real_tokens
from relaxprune.models.forward import model_device

from .norms import without_gain
from .structure import Structure
from .value_heads import ValuePath

Hear = Callable[[Tensor], None]


class EnergySum:
    """Running mean squares of a layer's inputs."""

    def __init__(self) -> None:
        """Start from no tokens."""
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, inputs: Tensor, kept: Tensor | None, layer: str) -> None:
        """Count the (..., cols) inputs of one batch, but for padding."""
        tokens = real_tokens(inputs.detach(), kept, f"the inputs of layer {layer!r}")
        squares = tokens.to(torch.float64).square().sum(dim=0)
        self._sum = squares if self._sum is None else self._sum + squares
        self._tokens += len(tokens)

    def mean(self, cols: int) -> Tensor:
        """Return (cols,) float64; ones if nothing was counted, as of experts that are no modules."""
        return torch.ones(cols, dtype=torch.float64) if self._sum is None else self._sum / max(1, self._tokens)


@dataclass(eq=False)
class BlockMoments:
    """What was counted in one block; names are those in the block.

    Attributes:
        grams: norm -> the Gram of what it puts out with its gain taken out; None -> that of the stream itself.
        energies: module -> mean squares of its inputs.
        heads: consumer of a value path -> for each head the Grams of its slots.
    """

    grams: dict[str | None, GramAccumulator] = field(default_factory=dict)
    energies: dict[str, EnergySum] = field(default_factory=dict)
    heads: dict[str, list[list[GramAccumulator]]] = field(default_factory=dict)

    def energy(self, module: str, cols: int) -> Tensor:
        """Return the (cols,) float64 mean squares of a module's inputs; ones if it was not heard."""
        return self.energies.get(module, EnergySum()).mean(cols)


class MomentCounter:
    """Listens to a model and counts what its rotation is learned from.

    Attributes:
        blocks: what was counted, block by block: 8 bytes for each entry of a Gram.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        """Prepare to listen to what ``structure`` says turns."""
        self.blocks = [BlockMoments() for _ in structure.blocks.modules]
        self._model = model
        self._structure = structure
        self._kept: Tensor | None = None

    def count(self, batches: Sequence[Batch]) -> list[BlockMoments]:
        """Run the model on every batch and return what was counted."""
        with self._listening():
            for batch in batches:
                self._kept = batch.kept
                run_model(self._model, batch)
        return self.blocks

    @contextmanager
    def _listening(self) -> Iterator[None]:
        handles: list[Any] = []
        try:
            for index, block in enumerate(self._structure.blocks.modules):
                for name, hear in self._ears(index, block):
                    module = block.get_submodule(name)
                    handles.append(module.register_forward_pre_hook(_first_input(hear), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _ears(self, index: int, block: nn.Module) -> Iterator[tuple[str, Hear]]:
        """Yield the modules of a block to listen to, and what to do with what they are called with."""
        moments, values = self.blocks[index], self._structure.values[index]
        if self._structure.streams:
            stream = self._structure.streams[index]
            for norm in stream.norms:
                yield norm.module, self._norm_ear(moments, block, norm.module, norm.unit)
            if any(reader.norm is None for reader in stream.readers):
                yield "", self._gram_ear(moments.grams, None)
            for place in stream.writers:
                if len(place.shape(block)) == 2 and place.parameter(block).dim() == 2:
                    yield place.module, self._energy_ear(moments, place.module)
        for path in () if isinstance(values, str) else values:
            yield path.consumer, self._head_ear(moments, path)
            if not self._structure.streams:
                yield path.producer, self._energy_ear(moments, path.producer)

    def _norm_ear(self, moments: BlockMoments, block: nn.Module, name: str, unit: float) -> Hear:
        norm = block.get_submodule(name)
        dtype = torch.promote_types(next(self._model.parameters()).dtype, torch.float32)
        twin = without_gain(norm, unit, dtype).to(model_device(self._model))
        hear = self._gram_ear(moments.grams, name)
        return lambda inputs: hear(twin(inputs.to(dtype)))

    def _gram_ear(self, grams: dict[str | None, GramAccumulator], name: str | None) -> Hear:
        def hear(inputs: Tensor) -> None:
            if name not in grams:
                grams[name] = GramAccumulator(inputs.shape[-1], inputs.device)
            grams[name].add(inputs, kept=self._kept, layer=str(name))

        return hear

    def _energy_ear(self, moments: BlockMoments, name: str) -> Hear:
        energy = moments.energies.setdefault(name, EnergySum())
        return lambda inputs: energy.add(inputs, self._kept, name)

    def _head_ear(self, moments: BlockMoments, path: ValuePath) -> Hear:
        device = model_device(self._model)
        sums = [[GramAccumulator(len(slot), device) for slot in head.columns] for head in path.heads]
        moments.heads[path.consumer] = sums

        def hear(inputs: Tensor) -> None:
            for head, slots in zip(path.heads, sums, strict=True):
                for slot, accumulator in zip(head.columns, slots, strict=True):
                    accumulator.add(inputs[..., slot.to(inputs.device)], kept=self._kept, layer=path.consumer)

        return hear


def _first_input(hear: Hear) -> Any:
    """Return a hook that hands on the first tensor that a module is called with."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = args[0] if args else next((value for value in kwargs.values() if isinstance(value, Tensor)), None)
        if isinstance(found, Tensor):
            hear(found.detach())

    return hook
