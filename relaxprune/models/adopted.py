"""Models whose weights accelerate has offloaded: their blocks travel for the time of a run, and go back pruned.

accelerate brings each module's weights when it is called, and takes them away after it: nobody else can work on them.
Inside ``adopted`` its hooks rest, and a ``BlockStore`` brings blocks from where accelerate keeps them; a block that is
finished is written back there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from operator import is_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.block_store import BlockStore
from relaxprune.residency.homes import empty_like
from relaxprune.residency.store import attach, detach
from relaxprune.residency.travellers import Traveller, units_of
from relaxprune.support.tensor_bits import raw_bytes

from .blocks import find_blocks
from .layers import find_layers

_HOOK, _FORWARD, _ADOPTION = "_hf_hook", "_old_forward", "_relaxprune_adoption"


@contextmanager
def adopted(model: nn.Module) -> Iterator[None]:
    """Bring the blocks of a model that accelerate has offloaded, inside; nothing is done to any other model.

    Parameters are the same each time, so that what was planned inside holds inside another time.

    Raises:
        RelaxPruneError: it is spread over several devices, or has no blocks.
    """
    if not isinstance(model, nn.Module) or not any(_offloading(module) for module in model.modules()):
        yield
        return
    adoption = getattr(model, _ADOPTION, None)
    if not isinstance(adoption, _Adoption) or not adoption.holds:
        adoption = _Adoption(model)
        setattr(model, _ADOPTION, adoption)
    try:
        adoption.begin()
        yield
    finally:
        adoption.end()


class _Adoption:
    """A model's parameters and hooks, as accelerate has them and as a ``BlockStore`` does."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooked = [module for module in model.modules() if hasattr(module, _HOOK)]
        self._hooks = [getattr(module, _HOOK) for module in self._hooked]
        self._places = _Offloaded()
        device = self._device()
        self._forwards: list[Any] = []
        self._own: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        found: dict[str, nn.Parameter] = {}
        made: dict[int, nn.Parameter] = {}
        for prefix, module in model.named_modules():
            for local, parameter in module._parameters.items():
                if parameter is None or not parameter.is_meta:
                    continue
                name = f"{prefix}.{local}" if prefix else local
                if id(parameter) not in made:
                    self._places.add(name, local, _offloading(module))
                    empty = empty_like(parameter, parameter.dtype, device)
                    made[id(parameter)] = found[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                self._own.append((module, local, parameter, made[id(parameter)]))
        self._store = self._made_store(found, device)

    @property
    def holds(self) -> bool:
        """Whether the model has the hooks that it had."""
        now = [getattr(module, _HOOK) for module in self._model.modules() if hasattr(module, _HOOK)]
        return len(now) == len(self._hooks) and all(map(is_, now, self._hooks))

    def begin(self) -> None:
        """Have accelerate's hooks rest, and the store bring the blocks."""
        self._forwards = []
        for module in self._hooked:
            self._forwards.append(module.forward)
            vars(module)["forward"] = getattr(module, _FORWARD)
            delattr(module, _HOOK)
        self._exchange(to_ours=True)
        attach(self._model, self._store)
        self._store.wake()

    def __deepcopy__(self, memo: object) -> None:
        """Leave a copied model without: it is adopted by itself."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Leave a stored model without."""
        return type(None), ()

    def end(self) -> None:
        """Give the model back to accelerate."""
        self._store.sleep()
        detach(self._model)
        self._exchange(to_ours=False)
        for module, hook, forward in zip(self._hooked, self._hooks, self._forwards, strict=False):
            vars(module)["forward"] = forward
            setattr(module, _HOOK, hook)
        self._forwards = []

    def _exchange(self, to_ours: bool) -> None:
        """Put the store's parameters into the modules, or accelerate's."""
        for module, local, theirs, ours in self._own:
            module._parameters[local] = ours if to_ours else theirs

    def _device(self) -> torch.device:
        """Return the device that all of the model computes on.

        Raises:
            RelaxPruneError: there are several, or a buffer is offloaded too.
        """
        hooks = [hook for module in self._hooked if (hook := _offloading(module)) is not None]
        places = {_device_of(hook.execution_device) for hook in hooks}
        places |= {parameter.device for parameter in self._model.parameters() if not parameter.is_meta}
        if len(places) != 1:
            raise RelaxPruneError(
                f"model must compute on one device, got one that is spread over {', '.join(sorted(map(str, places)))}: "
                "load it with a device map of one device besides cpu and disk"
            )
        away = next((name for name, buffer in self._model.named_buffers() if buffer.is_meta), None)
        if away is not None:
            raise RelaxPruneError(f"model must hold its buffers, got {away!r} offloaded: leave out offload_buffers")
        return places.pop()

    def _made_store(self, parameters: Mapping[str, nn.Parameter], device: torch.device) -> BlockStore:
        """Return what brings the blocks.

        Raises:
            RelaxPruneError: the model has none.
        """
        blocks = find_blocks(self._model, find_layers(self._model)[0])
        if not blocks.modules:
            raise RelaxPruneError("model must have a list of blocks to be pruned while it is offloaded, got none")
        places = blocks.places(self._model)
        ours = {id(own): places[id(theirs)] for _, _, theirs, own in self._own}
        units = units_of([Traveller(one, name, None) for name, one in parameters.items()], ours, len(blocks.modules))
        return BlockStore(list(blocks.modules), units, self._places, device, asleep=True)


class _Offloaded:
    """The tensors that accelerate keeps: in dictionaries, in files of its own, or in a checkpoint."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[Mapping[str, Any], str]] = {}

    def add(self, name: str, local: str, hook: Any) -> None:
        """Note where a parameter is: under ``local`` in the map of its module's hook.

        Raises:
            RelaxPruneError: it is nowhere.
        """
        held = getattr(hook, "weights_map", None)
        if held is None:
            raise RelaxPruneError(f"model must have values for all its weights, got {name!r} on the meta device")
        key = local
        while hasattr(held, "prefix") and hasattr(held, "dataset"):
            held, key = held.dataset, f"{held.prefix}{key}"
        self._places[name] = (held, key)

    @property
    def place(self) -> str:
        """Where the tensors are: accelerate has dictionaries of them in memory, and other maps on disk."""
        return "cpu" if all(isinstance(held, MutableMapping) for held, _ in self._places.values()) else "disk"

    def read(self, name: str) -> Tensor:
        """Return a copy of a tensor, on the CPU."""
        held, key = self._places[name]
        tensor: Tensor = held[key]
        return tensor.detach().to("cpu", copy=True)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put other values in a tensor's place; a checkpoint is left as it is, and its tensor kept beside it."""
        held, key = self._places[name]
        values = tensor.detach().to("cpu", copy=True)
        if isinstance(held, MutableMapping):
            held[key] = values
            return
        inner: Any = held  # accelerate's OffloadedWeightsLoader
        if key in inner.state_dict or inner.save_folder is None:
            inner.state_dict[key] = values
            return
        Path(inner.save_folder, f"{key}.dat").write_bytes(raw_bytes(values))
        inner.index[key] = {"dtype": str(values.dtype).removeprefix("torch."), "shape": list(values.shape)}


def _offloading(module: nn.Module) -> Any:
    """Return accelerate's hook that offloads a module's weights, None for none."""
    hook = getattr(module, _HOOK, None)
    hooks = getattr(hook, "hooks", (hook,))
    return next((one for one in hooks if getattr(one, "offload", False)), None)


def _device_of(place: Any) -> torch.device:
    """Return what accelerate means by an execution device: a name, a number or a device."""
    return torch.device("cpu") if place is None else torch.device(place)
