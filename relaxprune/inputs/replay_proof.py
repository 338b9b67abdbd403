"""Whether recorded blocks can stand in for the model: proven under other weights, in the order in which a run goes.

A recording is made with dense weights and used with pruned ones. What a block reads then must be a constant of the
batch or the output of an earlier block, and nothing that reaches it on another way: a dict, a cache, an attribute that
an earlier block fills. So the whole model is run with all blocks' weights disturbed, and the recordings are replayed
with the same weights, block after block and batch after batch with a dense replay in between; every block must read and
put out the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.models.layers import PrunableLayer
from relaxprune.residency.states import HERE, Shelf
from relaxprune.residency.store import Whole, store_of
from relaxprune.support.tensor_bits import checksum

from .batches import Batch
from .replay import Hearing, Tape, equal_leaves, record, record_still, share_constants
from .tree import flatten

BYPASS = "a block reads something that is computed between the blocks or handed past them"
UNEQUAL = "replayed blocks do not give the model's own values bit for bit"
UNLIKE = "batches reach different blocks"
IN_PLACE = "a block changes its inputs in place"
NOT_FINITE = "values are not finite once weights are disturbed"

Layers = Sequence[Sequence[PrunableLayer]]  # for each block those in it whose weights will change


def record_all(
    model: nn.Module, blocks: Sequence[nn.Module], layers: Layers, batches: Sequence[Batch], shelf: Shelf = HERE
) -> tuple[list[Tape], str]:
    """Record every batch, and make sure that the recordings can stand in for the model.

    Args:
        model: in evaluation mode.
        blocks: the modules to record.
        layers: for each block the layers in it whose weights will change.
        batches: at least one. Two of them are compared with the model, the second unlike the first where one is.
        shelf: where hidden states are kept.

    Returns:
        One tape per batch and "", or no tape and the reason why the blocks of this model cannot be replayed.
    """
    places = _Places(blocks, layers)
    with places.listening():
        first = record(model, blocks, batches[0])
    if not first.order:
        return [], "the first batch reaches no block"
    if len(set(first.order)) < len(first.order):
        return [], "a block is called more than once in a forward pass"
    tapes = {0: first}
    other, store, look = _unlike_first(batches), store_of(model), _look(batches[0])
    for number in dict.fromkeys([*([other] if other else []), *range(1, len(batches))]):
        tape = None
        if store.travels and number != other and _look(batches[number]) == look:
            # Unless the model itself looks at what blocks put out, none has to come for what they are called with.
            with store.still():
                tape = record_still(model, blocks, batches[number], stop_at=first.order[-1], forms=first.forms)
        if tape is None:
            with places.listening():
                tape = record(model, blocks, batches[number], stop_at=first.order[-1])
        tapes[number] = tape
        if tapes[number].order != first.order:
            return [], UNLIKE
        share_constants(tapes[number], tapes.get(number - 1, first))
        if number == other and (reason := _why_not(model, blocks, layers, batches, tapes)):
            return [], reason
        if number != other:
            tapes[number].set_aside(shelf)
    if not other and (reason := _why_not(model, blocks, layers, batches, tapes)):
        return [], reason
    if places.strange:
        return [], f"layer {places.strange[0]!r} is called in several blocks, or outside of them too"
    for number in {0, other}:
        tapes[number].set_aside(shelf)  # only now: the proof looks at its constants
    return [tapes[number] for number in range(len(batches))], ""


def _unlike_first(batches: Sequence[Batch]) -> int:
    """Return the number of the first batch of other shapes or other padding than batch 0, else 1; 0 for one batch."""
    looks = [_look(batch) for batch in batches]
    return next((number for number, look in enumerate(looks) if look != looks[0]), min(1, len(batches) - 1))


def _look(batch: Batch) -> tuple[Any, ...]:
    """Return the shapes of a batch's tensors, and whether it has padding."""
    shapes = [tuple(tensor.shape) for tensor in flatten((batch.args, batch.kwargs))[0]]
    return (*shapes, batch.kept is None, batch.decoder_kept is None)


class _Places:
    """Hears in which blocks layers are called.

    Attributes:
        strange: names of layers that were called anywhere but in their own block.
    """

    def __init__(self, blocks: Sequence[nn.Module], layers: Layers) -> None:
        self.strange: list[str] = []
        self._blocks, self._layers = blocks, layers
        self._inside: list[int] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to one forward pass."""
        self._inside.clear()
        handles = []
        try:
            for index, block in enumerate(self._blocks):
                handles.append(block.register_forward_pre_hook(self._enter(index)))
                handles.append(block.register_forward_hook(lambda *_call: self._leave()))
                modules = {layer.module: layer.name for layer in self._layers[index]}
                handles += [
                    module.register_forward_pre_hook(self._note(index, name)) for module, name in modules.items()
                ]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, index: int) -> Any:
        """Return the hook for the start of a block."""
        return lambda _module, _args: self._inside.append(index)

    def _leave(self) -> None:
        """Note the end of a block."""
        self._inside.pop()

    def _note(self, own: int, name: str) -> Any:
        """Return the hook that notes where a layer of block ``own`` is called."""

        def note(_module: nn.Module, _args: object) -> None:
            if self._inside[-1:] != [own]:
                self.strange.append(name)

        return note


def _why_not(
    model: nn.Module, blocks: Sequence[nn.Module], layers: Layers, batches: Sequence[Batch], tapes: dict[int, Tape]
) -> str:
    """Return why the tapes so far cannot stand in for the model, "" if they can.

    The model's weights are exchanged for a while, and are back also after an exception.
    """
    disturbed = _Disturbed(layers, store_of(model))
    truths = []
    for number, tape in tapes.items():
        truth = _Truth(disturbed)
        whole = record(model, blocks, batches[number], stop_after=tape.order[-1], hearing=truth)
        if not _same_constants(tape, whole):
            return BYPASS
        if not truth.finite:
            return NOT_FINITE
        truths.append(truth)
    forks, dense = [tape.fork() for tape in tapes.values()], tapes[0].fork()
    for index in dense.order:
        for tape, truth in zip(forks, truths, strict=True):
            with disturbed.block(index):
                reason = _why_unequal(tape, truth, index, blocks[index])
            if reason:
                return reason
        dense.advance(index, blocks[index])  # as the dense model's pass does, between those of the pruned one
    return ""


def _why_unequal(tape: Tape, truth: _Truth, index: int, block: nn.Module) -> str:
    """Advance a tape by a block, and return how that differs from the model's own run, "" for not at all."""
    if _bits(tape.links(index)) != truth.inputs[index]:
        return UNEQUAL
    inputs = tape.inputs(index)
    versions = [tensor._version for tensor in inputs]
    outputs = tape.advance(index, block)
    if versions != [tensor._version for tensor in inputs]:  # it is to run twice on the same inputs
        return IN_PLACE
    return "" if _bits(outputs) == truth.outputs[index] else UNEQUAL


@dataclass(eq=False)
class _Truth(Hearing):
    """What the blocks read and put out in the model itself, with disturbed weights.

    Attributes:
        disturbed: gives each block its weights while it runs.
        inputs: block -> checksum of the outputs of earlier blocks that it read.
        outputs: block -> checksum of the tensors that it put out.
        finite: whether all outputs are.
    """

    disturbed: _Disturbed
    inputs: dict[int, str] = field(default_factory=dict)
    outputs: dict[int, str] = field(default_factory=dict)
    finite: bool = True

    def around(self, index: int) -> AbstractContextManager[None]:
        """Have the disturbed weights in a block while it runs."""
        return self.disturbed.block(index)

    def reads(self, index: int, links: Sequence[Tensor]) -> None:
        """Note what a block is called with."""
        self.inputs[index] = _bits(links)

    def puts_out(self, index: int, outputs: Sequence[Tensor]) -> None:
        """Note what a block puts out."""
        self.outputs[index] = _bits(outputs)
        self.finite &= all(bool(tensor.isfinite().all()) for tensor in outputs if tensor.is_floating_point())


class _Disturbed:
    """Other weights for the layers of a block, the same ones each time; kept for one block at a time."""

    def __init__(self, layers: Sequence[Sequence[PrunableLayer]], store: Whole) -> None:
        self._store = store
        self._weights = [{id(layer.weight): layer.weight for layer in members} for members in layers]

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        """Have the other weights in a block; the tensors with its own come back, also after an exception."""
        with self._store.resident(index):
            kept = [(weight, weight.data) for weight in self._weights[index].values()]
            try:
                for place, (weight, own) in enumerate(kept):
                    weight.data = _disturb(own, place)
                yield
            finally:
                for weight, own in kept:
                    weight.data = own


def _disturb(weight: Tensor, seed: int) -> Tensor:
    """Return a weight with each column times a number in [0, 1), for as pruning it must not grow."""
    flat = weight.flatten(1)
    factors = torch.rand(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    return (flat * factors.to(device=flat.device, dtype=flat.dtype)).view_as(weight)


def _bits(tensors: Sequence[Tensor]) -> str:
    """Return a checksum of the bits of some tensors."""
    return checksum((str(number), tensor) for number, tensor in enumerate(tensors))


def _same_constants(one: Tape, other: Tape) -> bool:
    """Return whether two recordings of the same batch differ in nothing but the values of links."""
    if one.order != other.order:
        return False
    for index, call in one.calls.items():
        others = other.calls[index].leaves
        if len(others) != len(call.leaves) or not all(map(equal_leaves, call.leaves, others)):
            return False
    return True
