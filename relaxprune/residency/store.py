"""What brings a model's weights to the device when they are needed: nothing for a whole model, or what is attached."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from .homes import values_of

_STORE = "_relaxprune_store"


class Whole:
    """The store of a model that holds all its weights: everything is there, and stays.

    Attributes:
        travels: whether blocks come and go.
        place: where blocks are while nobody works on them, as ``Residency.weights`` says it.
        room_bytes: how much blocks that nobody needs may take before they leave.
        loads: how often a block has come.
    """

    travels = False
    place = "device"
    room_bytes = 0
    loads = 0

    def present_bytes(self, whole: int) -> int:
        """Return how much of a model of ``whole`` bytes the device holds now."""
        return whole

    def resident(self, index: int) -> AbstractContextManager[None]:
        """Have the block of a stage on the device, inside."""
        return nullcontext()

    def still(self) -> AbstractContextManager[None]:
        """Have no block come when it is called, inside."""
        return nullcontext()

    def finish(self, index: int, redo: Callable[[], None]) -> None:
        """Take in that a block is pruned; ``redo`` makes its dense weights, which are there then, what they are now."""

    def values(self, parameter: Tensor) -> Tensor:
        """Return the values of a parameter of the model as it is now, detached."""
        return values_of(parameter)


WHOLE = Whole()


def attach(model: nn.Module, store: Whole) -> None:
    """Have a model's blocks brought by a store."""
    setattr(model, _STORE, store)


def detach(model: nn.Module) -> None:
    """Have a model's blocks brought by nothing any more."""
    vars(model).pop(_STORE, None)


def store_of(model: nn.Module) -> Whole:
    """Return what brings a model's blocks."""
    store = getattr(model, _STORE, None)
    return store if isinstance(store, Whole) else WHOLE
