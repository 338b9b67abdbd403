"""Recording the arguments of each block, and running the blocks one after another on them.

Each block has its own arguments (gemma3's sliding and full blocks get different masks and rotary values), so they are
recorded per block. A tensor that is an output of an earlier block becomes a link and is filled in with what that block
puts out once it is pruned; all others are constants, kept by reference.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from relaxprune.residency.states import HERE, Kept, Shelf
from relaxprune.support.forwards import replaced_forwards

from .batches import Batch, run_model
from .taint import Taint
from .tree import flatten, rebuild


@dataclass(frozen=True)
class Link:
    """Tensor number ``index`` of what block ``block`` puts out."""

    block: int
    index: int


# A constant, an output of an earlier block, or a constant that lies on the shelf.
Leaf: TypeAlias = Tensor | Link | Kept


@dataclass
class Call:
    """What a block was called with: ``skeleton`` is (args, kwargs) with a slot for each entry of ``leaves``."""

    leaves: list[Leaf]
    skeleton: Any


@dataclass(frozen=True)
class Form:
    """What a block puts out, without its numbers: ``skeleton`` has a slot for each of ``leaves``, which have none."""

    skeleton: Any
    leaves: list[Tensor]

    @classmethod
    def of(cls, output: Any) -> Form:
        """Return the form of an output."""
        leaves, skeleton = flatten(output)
        return cls(skeleton, [leaf.new_zeros(()).expand(leaf.shape) for leaf in leaves])

    def made(self) -> Any:
        """Return an output of this form, of made-up values."""
        return rebuild(self.skeleton, [leaf.clone() for leaf in self.leaves])


@dataclass
class Tape:
    """One batch's calls of the blocks.

    Attributes:
        order: indices of the blocks in the order of their calls.
        calls: block -> its call; dropped once the block is done.
        values: the links' tensors that blocks to come still need.
        shelf: where these lie.
        forms: block -> the form of what it put out.
    """

    order: list[int] = field(default_factory=list)
    calls: dict[int, Call] = field(default_factory=dict)
    values: dict[Link, Kept] = field(default_factory=dict)
    shelf: Shelf = HERE
    forms: dict[int, Form] = field(default_factory=dict)

    def run(self, index: int, block: nn.Module) -> list[Tensor]:
        """Run a block on its recorded constants and the current values of its links; return its output tensors."""
        args, kwargs = rebuild(self.calls[index].skeleton, self.inputs(index))
        return flatten(block(*args, **kwargs))[0]

    def inputs(self, index: int) -> list[Tensor]:
        """Return the tensors that a block is called with now."""
        return [self._tensor(leaf) for leaf in self.calls[index].leaves]

    def advance(self, index: int, block: nn.Module) -> list[Tensor]:
        """Run a block for the last time; keep what later blocks need of its outputs, drop what none needs any more.

        Returns:
            All its output tensors.
        """
        outputs = self.run(index, block)
        del self.calls[index]
        needed = {leaf for call in self.calls.values() for leaf in call.leaves if isinstance(leaf, Link)}
        self.values = {link: kept for link, kept in self.values.items() if link in needed}
        made = {Link(index, number): tensor for number, tensor in enumerate(outputs)}
        self.values |= {link: self.shelf.put(tensor) for link, tensor in made.items() if link in needed}
        return outputs

    def links(self, index: int) -> list[Tensor]:
        """Return the tensors among a block's inputs that are outputs of earlier blocks."""
        return [self._tensor(leaf) for leaf in self.calls[index].leaves if isinstance(leaf, Link)]

    def set_aside(self, shelf: Shelf) -> None:
        """Keep hidden states on a shelf from now on: outputs, and constants that one block alone reads.

        Constants that several blocks read, such as masks, are few and stay.
        """
        self.shelf = shelf
        if not shelf.moves:
            return
        readers = Counter(id(leaf) for call in self.calls.values() for leaf in call.leaves)
        for call in self.calls.values():
            call.leaves = [
                shelf.put(leaf) if isinstance(leaf, Tensor) and readers[id(leaf)] == 1 else leaf for leaf in call.leaves
            ]

    def _tensor(self, leaf: Leaf) -> Tensor:
        """Return the tensor that a block is called with for a leaf."""
        found = self.values[leaf] if isinstance(leaf, Link) else leaf
        return found if isinstance(found, Tensor) else found.tensor()

    def fork(self) -> Tape:
        """Return a tape that goes on by itself; the tensors are shared."""
        return Tape(list(self.order), dict(self.calls), dict(self.values), self.shelf)


class Hearing:
    """Hears what blocks do in the model while they are recorded; this one does not listen."""

    def around(self, index: int) -> AbstractContextManager[object]:
        """Return what is entered before a block runs, and left after it or when the pass ends."""
        return nullcontext()

    def reads(self, index: int, links: Sequence[Tensor]) -> None:
        """Hear which outputs of earlier blocks a block is called with."""

    def puts_out(self, index: int, outputs: Sequence[Tensor]) -> None:
        """Hear what a block puts out."""


class _StopForward(BaseException):
    """Leaves a forward pass after the last block was reached; no Exception, so no model code catches it."""


class _Recorder:
    """Hooks on all blocks that write one tape."""

    def __init__(self, stop_at: int | None, stop_after: int | None, hearing: Hearing) -> None:
        self.tape = Tape()
        self.running = ExitStack()
        self._stop_at, self._stop_after = stop_at, stop_after
        self._hearing = hearing
        # Weak references: an address may be used again, a dead reference never equals a live tensor.
        self._outputs: dict[int, tuple[weakref.ref[Tensor], Link]] = {}

    def before(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call."""
        leaves, skeleton = flatten((args, kwargs))
        linked: list[Leaf] = [self._link(leaf) for leaf in leaves]
        self.tape.order.append(index)
        self.tape.calls[index] = Call(linked, skeleton)
        self._hearing.reads(index, [leaf for leaf, link in zip(leaves, linked, strict=True) if isinstance(link, Link)])
        if index == self._stop_at:
            raise _StopForward
        self.running.enter_context(self._hearing.around(index))

    def after(self, index: int, output: Any) -> None:
        """Note the outputs."""
        self.running.close()
        leaves = flatten(output)[0]
        self.tape.forms[index] = Form.of(output)
        for number, leaf in enumerate(leaves):
            self._outputs[id(leaf)] = (weakref.ref(leaf), Link(index, number))
        self._hearing.puts_out(index, leaves)
        if index == self._stop_after:
            raise _StopForward

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
    stop_after: int | None = None,
    hearing: Hearing | None = None,
) -> Tape:
    """Put one batch through the model and write down the calls of its blocks.

    Args:
        model: in evaluation mode; no gradients are wanted.
        blocks: the modules to listen to.
        batch: what to call the model with.
        stop_at: leave the pass when this block is called, which saves the output head.
        stop_after: leave the pass when this block has put out its outputs.
        hearing: hears what the blocks read and put out.
    """
    recorder = _Recorder(stop_at, stop_after, hearing or Hearing())
    with _hooked(blocks, recorder), recorder.running, suppress(_StopForward):
        run_model(model, batch)
    return recorder.tape


def record_still(
    model: nn.Module, blocks: Sequence[nn.Module], batch: Batch, *, stop_at: int, forms: Mapping[int, Form]
) -> Tape | None:
    """Write down what blocks are called with in one pass, without running them: made-up tensors are put out instead.

    Args:
        model: as for ``record``.
        blocks: the modules to listen to.
        batch: what to call the model with.
        stop_at: leave the pass when this block is called.
        forms: block -> the form of what it puts out.

    Returns:
        The tape; None if the model did, or might do, something with values of these tensors outside of the blocks.
    """
    taint = Taint()

    def made(form: Form, *_args: Any, **_kwargs: Any) -> Any:
        output = form.made()
        for leaf in flatten(output)[0]:
            taint.mark(leaf)
        return output

    stills = {blocks[index]: partial(made, form) for index, form in forms.items()}
    try:
        with replaced_forwards(stills), taint:
            tape = record(model, blocks, batch, stop_at=stop_at)
    except Exception:  # values that no block would put out; without them it runs, or raises again
        return None
    constants = [leaf for call in tape.calls.values() for leaf in call.leaves if isinstance(leaf, Tensor)]
    return None if taint.read or any(map(taint.holds, constants)) else tape


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


def equal_leaves(one: Leaf, other: Leaf) -> bool:
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
                known[pair] = equal_leaves(leaf, old)
            if known[pair]:
                call.leaves[number] = old
