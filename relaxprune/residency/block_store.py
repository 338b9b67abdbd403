"""Blocks that travel: each comes to the device when its turn comes, and leaves its room to the next one.

A model that travels has a ``BlockStore`` attached, any other ``Whole``, which does nothing. Whoever works on a block
asks for it by ``with store_of(model).resident(index):``. A pass through the model needs no asking: a block comes when
it is called. Blocks that nobody holds leave when room is needed, not before: whatever was exchanged for a while in a
block (``parameter.data``) is back by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from relaxprune.problems.errors import RelaxPruneError

from .ahead import Ahead
from .homes import Home, empty_like, home_of, settle
from .sources import Shards, Source, Writable
from .store import Whole
from .travellers import REST, Traveller


@dataclass(eq=False)
class _Unit:
    """Tensors that come and go together."""

    travellers: list[Traveller]
    pins: int = 0
    redo: list[Callable[[], None]] = field(default_factory=list)
    size: int = 0


class BlockStore(Whole):
    """Brings the blocks of a model to the device, in turn; the block after is read by one thread meanwhile.

    Attributes:
        as_stored: bring tensors in the dtypes that they are stored in; set by ``restored``.

    Args:
        blocks: the blocks, in their order.
        units: index of a block, or ``REST`` -> its parameters. Each gets its values from the source, when needed.
        source: what they are read from.
        device: where they go.
        checkpoint: the files that the model is from, if it is from any.
        asleep: begin by bringing nothing, until ``wake``.
    """

    travels = True

    def __init__(
        self,
        blocks: list[nn.Module],
        units: Mapping[int, list[Traveller]],
        source: Source,
        device: torch.device,
        checkpoint: Shards | None = None,
        *,
        asleep: bool = False,
    ) -> None:
        self.place = source.place
        self.room_bytes = 0
        self.as_stored = False
        self._source, self._device, self._checkpoint = source, device, checkpoint
        self._units = {index: _Unit(found) for index, found in units.items()}
        pairs = [(index, one) for index, found in units.items() for one in found]
        self._travellers = {id(one.parameter): (index, one) for index, one in pairs}
        self._by_name = {one.name: (index, one) for index, one in pairs}
        self._here: list[int] = []  # blocks that are there, the one used last at the end
        self._last, self._still = REST, asleep
        self._ahead: Ahead[list[Tensor]] = Ahead()
        for index, unit in self._units.items():
            for one in unit.travellers:
                self._settle(index, one)
                unit.size += one.parameter.numel() * one.parameter.element_size()
        self._blocks, self._hooks = blocks, list[RemovableHandle]()
        if not asleep:
            self.wake()

    def present_bytes(self, whole: int) -> int:
        """Return what the device holds now."""
        return sum(self._units[index].size for index in (REST, *self._here))

    @contextmanager
    def resident(self, index: int) -> Iterator[None]:
        """Have the block of a stage on the device, inside; stages that are no block are there anyway."""
        unit = self._units.get(index, self._units[REST])
        if unit is not self._units[REST]:
            self._bring(index)
        unit.pins += 1
        try:
            yield
        finally:
            unit.pins -= 1

    @contextmanager
    def still(self) -> Iterator[None]:
        """Have no block come when it is called, inside."""
        self._still = True
        try:
            yield
        finally:
            self._still = False

    def wake(self) -> None:
        """Bring blocks when they are called, and what lies outside of them now."""
        self._still = False
        for index, block in enumerate(self._blocks):
            self._hooks.append(block.register_forward_pre_hook(self._arriving(index)))
        self._fill(REST)

    def sleep(self) -> None:
        """Take everything off the device, and bring nothing any more."""
        self._still = True
        while self._hooks:
            self._hooks.pop().remove()
        self._ahead.close()
        for index in list(self._here):
            self._dismiss(index)
        self._clear(REST)

    def finish(self, index: int, redo: Callable[[], None]) -> None:
        """Take in that a block is pruned.

        It is written back if its source takes it; else it comes as dense, and is made what it is by ``redo``.
        """
        unit = self._units.get(index, self._units[REST])
        if not isinstance(self._source, Writable):
            unit.redo.append(redo)
            return
        for one in unit.travellers:
            self._source.write(one.name, one.parameter)

    def values(self, parameter: Tensor) -> Tensor:
        """Return the values of a parameter of the model as it is now, detached."""
        index, _ = self._travellers.get(id(parameter), (REST, None))
        if index != REST:
            self._bring(index)
        return parameter.detach()

    @property
    def shards(self) -> Shards:
        """The files that the model is from.

        Raises:
            RelaxPruneError: it is from none.
        """
        if self._checkpoint is None:
            raise RelaxPruneError(
                "model must come from safetensors files to be saved block by block, got one that does not"
            )
        return self._checkpoint

    def name_of(self, parameter: Tensor) -> str:
        """Return the name that the source has for a parameter."""
        return self._travellers[id(parameter)][1].name

    def current(self, name: str) -> Tensor:
        """Return a tensor of the files that the model is from, as it is now: pruned, if its block is."""
        index, one = self._by_name.get(self.shards.whole(name), (REST, None))
        if one is None or not self._units[index].redo:
            return self.shards.read(name)
        return self.shards.part(name, self.values(one.parameter))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Have all tensors as they are stored, inside, and not in the dtype of the computation."""
        self._reload(as_stored=True)
        try:
            yield
        finally:
            self._reload(as_stored=False)

    def _reload(self, as_stored: bool) -> None:
        """Bring everything anew, if that makes a difference."""
        if all(one.dtype is None for unit in self._units.values() for one in unit.travellers):
            return
        self._ahead.drop()
        for index in list(self._here):
            self._dismiss(index)
        self.as_stored = as_stored
        self._fill(REST)

    def _settle(self, index: int, one: Traveller) -> None:
        """Make a parameter one whose values are elsewhere."""

        def read() -> Tensor:
            return self.values(one.parameter) if self._units[index].redo else self._read(one)

        dtype = one.dtype or one.parameter.dtype
        home = Home(read, empty_like(one.parameter, dtype, self._device))
        home.clear(one.parameter)
        settle(one.parameter, home)

    def _arriving(self, index: int) -> Any:
        """Return the hook for the call of a block."""

        def arrive(_module: nn.Module, _args: object) -> None:
            if not self._still:
                self._bring(index)

        return arrive

    def _bring(self, index: int) -> None:
        """Have a block on the device, and the one after it read."""
        if index in self._here:
            self._here.remove(index)
        else:
            self._make_room()
            self._fill(index)
        self._here.append(index)
        after, in_turn = index + 1, index in (0, self._last + 1)
        self._last = index
        if in_turn and after in self._units and after not in self._here:
            self._ahead.start(after, lambda: self._values(after))

    def _make_room(self) -> None:
        """Dismiss blocks that nobody needs, those that are done first.

        Of the others the one used last goes first: passes go through all blocks in turn, so it is needed last.
        """
        spare = [index for index in reversed(self._here) if not self._units[index].pins]
        spare.sort(key=lambda index: not self._units[index].redo)  # keeps the order of equals
        taken = sum(self._units[index].size for index in spare)
        for index in spare:
            if taken <= self.room_bytes:
                return
            self._dismiss(index)
            taken -= self._units[index].size

    def _dismiss(self, index: int) -> None:
        """Take a block off the device."""
        self._here.remove(index)
        self._clear(index)

    def _clear(self, index: int) -> None:
        """Take the values of a unit's parameters away."""
        for one in self._units[index].travellers:
            _home(one).clear(one.parameter)

    def _fill(self, index: int) -> None:
        """Give the parameters of a unit their values, as they are now."""
        unit = self._units[index]
        values = self._ahead.take(index) or self._values(index)
        for one, tensor in zip(unit.travellers, values, strict=True):
            _home(one).fill(one.parameter, tensor)
        self.loads += 1
        try:
            with torch.no_grad():
                for redo in unit.redo:
                    redo()
        except BaseException:
            self._clear(index)
            raise

    def _values(self, index: int) -> list[Tensor]:
        """Read the tensors of a unit."""
        return [self._read(one) for one in self._units[index].travellers]

    def _read(self, one: Traveller) -> Tensor:
        """Read a tensor from the source, onto the device."""
        found = self._source.read(one.name)
        dtype = found.dtype if one.dtype is None or self.as_stored else one.dtype
        return found.to(device=self._device, dtype=dtype)


def _home(one: Traveller) -> Home:
    """Return where a parameter's values are."""
    home = home_of(one.parameter)
    assert home is not None  # settled when the store was made
    return home
