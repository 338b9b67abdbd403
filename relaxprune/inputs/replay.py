"""Recording the arguments of each block, and running the blocks one after another on them.

Each block has its own arguments (gemma3's sliding and full blocks get different masks and rotary values), so they are
recorded per block. A tensor that is an output of an earlier block becomes a link and is filled in with what that block
puts out once it is pruned; all others are constants, kept by reference.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch, run_model
from .tree import flatten, map_tree, rebuild


@dataclass(frozen=True)
class Link:
    """Tensor number ``index`` of what block ``block`` puts out."""

    block: int
    index: int


@dataclass
class Call:
    """What a block was called with: ``skeleton`` is (args, kwargs) with a slot for each entry of ``leaves``."""

    leaves: list[Tensor | Link]
    skeleton: Any


@dataclass
class Tape:
    """One batch's calls of the blocks.

    Attributes:
        order: indices of the blocks in the order of their calls.
        calls: block -> its call; dropped once the block is done.
        values: the links' tensors that later blocks still need.
        final: outputs of the last block, only where the recording ran to the end of the model.
    """

    order: list[int] = field(default_factory=list)
    calls: dict[int, Call] = field(default_factory=dict)
    values: dict[Link, Tensor] = field(default_factory=dict)
    final: list[Tensor] | None = None

    def run(self, index: int, block: nn.Module) -> list[Tensor]:
        """Run a block on its recorded constants and the current values of its links; return its output tensors."""
        args, kwargs = rebuild(self.calls[index].skeleton, self.inputs(index))
        return flatten(block(*args, **kwargs))[0]

    def inputs(self, index: int) -> list[Tensor]:
        """Return the tensors that a block is called with now."""
        return [self.values[leaf] if isinstance(leaf, Link) else leaf for leaf in self.calls[index].leaves]

    def advance(self, index: int, block: nn.Module) -> None:
        """Run a block for the last time: keep what later blocks need of its outputs, drop what none needs any more."""
        outputs = self.run(index, block)
        del self.calls[index]
        needed = {leaf for call in self.calls.values() for leaf in call.leaves if isinstance(leaf, Link)}
        self.values |= {Link(index, number): tensor for number, tensor in enumerate(outputs)}
        self.values = {link: tensor for link, tensor in self.values.items() if link in needed}

    def fork(self) -> Tape:
        """Return an independent tape that shares the tensors."""
        return Tape(list(self.order), dict(self.calls), dict(self.values), self.final)


class _StopForward(BaseException):
    """Leaves a forward pass after the last block was reached; no Exception, so no model code catches it."""


class _Recorder:
    """Hooks on all blocks that write one tape."""

    def __init__(self, stop_at: int | None, disturb: int | None) -> None:
        self.tape = Tape()
        self._stop_at = stop_at
        self._disturb = disturb
        # Weak references: an address may be used again, a dead reference never equals a live tensor.
        self._outputs: dict[int, tuple[weakref.ref[Tensor], Link]] = {}

    def before(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call."""
        leaves, skeleton = flatten((args, kwargs))
        self.tape.order.append(index)
        self.tape.calls[index] = Call([self._link(leaf) for leaf in leaves], skeleton)
        if index == self._stop_at:
            raise _StopForward

    def after(self, index: int, output: Any) -> Any:
        """Note the outputs; put others in their place in the block to disturb."""
        if index == self._disturb:
            output = map_tree(output, Tensor, lambda leaf: leaf.flip(-1) if leaf.is_floating_point() else leaf)
        leaves = flatten(output)[0]
        for number, leaf in enumerate(leaves):
            self._outputs[id(leaf)] = (weakref.ref(leaf), Link(index, number))
        self.tape.final = leaves
        return output

    def _link(self, leaf: Tensor) -> Tensor | Link:
        """Return the link that a tensor is the value of, or the tensor."""
        reference, link = self._outputs.get(id(leaf), (None, None))
        return link if reference is not None and link is not None and reference() is leaf else leaf


def record(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    batch: Batch,
    *,
    stop_at: int | None = None,
    disturb: int | None = None,
) -> Tape:
    """Put one batch through the model and write down the calls of its blocks.

    Args:
        model: in evaluation mode; no gradients are wanted.
        blocks: the modules to listen to.
        batch: what to call the model with.
        stop_at: leave the pass when this block is called, which saves the output head.
        disturb: reverse the features of this block's outputs, to see what depends on them.
    """
    recorder = _Recorder(stop_at, disturb)
    with _hooked(blocks, recorder):
        try:
            run_model(model, batch)
        except _StopForward:
            recorder.tape.final = None
    return recorder.tape


@contextmanager
def _hooked(blocks: Sequence[nn.Module], recorder: _Recorder) -> Iterator[None]:
    """Put the recorder's hooks on all blocks, and take them off again whatever happens."""

    def before(index: int) -> Any:
        return lambda _module, args, kwargs: recorder.before(index, args, kwargs)

    def after(index: int) -> Any:
        return lambda _module, _args, output: recorder.after(index, output)

    handles = []
    try:
        for index, block in enumerate(blocks):
            handles.append(block.register_forward_pre_hook(before(index), with_kwargs=True))
            handles.append(block.register_forward_hook(after(index)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_all(model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Batch]) -> tuple[list[Tape], str]:
    """Record every batch, and make sure that the recording can stand in for the model.

    Returns:
        One tape per batch and "", or no tape and the reason why the blocks of this model cannot be replayed.
    """
    first = record(model, blocks, batches[0])
    reason = _why_not(model, blocks, batches[0], first)
    if reason:
        return [], reason
    tapes = [first]
    for batch in batches[1:]:
        tape = record(model, blocks, batch, stop_at=first.order[-1])
        if tape.order != first.order:
            return [], "batches reach different blocks"
        share_constants(tape, tapes[-1])
        tapes.append(tape)
    return tapes, ""


def _why_not(model: nn.Module, blocks: Sequence[nn.Module], batch: Batch, tape: Tape) -> str:
    """Return why a tape cannot stand in for the model, "" if it can; leaves the tape ready for use."""
    if not tape.order:
        return "the first batch reaches no block"
    if len(set(tape.order)) < len(tape.order):
        return "a block is called more than once in a forward pass"
    expected, tape.final = tape.final or [], None
    disturbed = record(model, blocks, batch, stop_at=tape.order[-1], disturb=tape.order[0])
    if not _same_constants(tape, disturbed):
        return "a block reads something that is computed between the blocks"
    outputs: list[Tensor] = []
    for index in tape.order:
        inputs = tape.inputs(index)
        versions = [tensor._version for tensor in inputs]
        outputs = tape.run(index, blocks[index])
        if versions != [tensor._version for tensor in inputs]:  # it is to run twice on the same inputs
            return "a block changes its inputs in place"
        tape.values |= {Link(index, number): tensor for number, tensor in enumerate(outputs)}
    tape.values.clear()
    same = len(outputs) == len(expected) and all(map(torch.equal, outputs, expected))
    return "" if same else "replayed blocks do not give the model's own values bit for bit"


def _same_constants(one: Tape, other: Tape) -> bool:
    """Return whether two recordings of the same batch differ in nothing but the values of links."""
    if one.order != other.order:
        return False
    for index, call in one.calls.items():
        others = other.calls[index].leaves
        if len(others) != len(call.leaves) or not all(map(_equal_leaves, call.leaves, others)):
            return False
    return True


def _equal_leaves(one: Tensor | Link, other: Tensor | Link) -> bool:
    """Return whether two leaves are the same link or tensors of equal values."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.dtype == other.dtype and torch.equal(one, other))
    return one == other if isinstance(one, Link) and isinstance(other, Link) else False


def share_constants(tape: Tape, earlier: Tape) -> None:
    """Use the earlier batch's tensors if values are equal: equal windows have equal masks and rotary values."""
    known: dict[tuple[int, int], bool] = {}
    for index, call in tape.calls.items():
        before = earlier.calls[index].leaves
        for number, (leaf, old) in enumerate(zip(call.leaves, before, strict=False)):
            if not isinstance(leaf, Tensor) or not isinstance(old, Tensor):
                continue
            pair = (id(leaf), id(old))
            if pair not in known:
                known[pair] = _equal_leaves(leaf, old)
            if known[pair]:
                call.leaves[number] = old
