"""Counts the operations that make the host wait for a device, on any device: a CPU runs the same operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Results that decide Python's way, or whose shape depends on the data.
_ALWAYS = {
    "_local_scalar_dense",  # item(), bool(), float(), int()
    "equal",
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by a mask: its entries are counted first
_WHOLE = {"tolist", "numpy", "__array__", "cpu"}  # methods that copy to the host without an operation of their own


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = (index for index in (args[1] if name in _INDEXING else ()) if index is not None)
        if (
            name in _ALWAYS
            or any(index.dtype in (torch.bool, torch.uint8) for index in masks)
            or (name == "repeat_interleave" and (kwargs or {}).get("output_size") is None)
        ):
            self.waits.note(name)
        return func(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    """Counts, while it is entered, how often a device would be waited for.

    Attributes:
        count: so far.
        names: of the operations that waited, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._operations = _Operations(self)

    @property
    def count(self) -> int:
        return len(self.names)

    def note(self, name: str) -> None:
        """Count one."""
        self.names.append(name)

    def __enter__(self) -> Waits:
        super().__enter__()
        self._operations.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._operations.__exit__(*failure)
        super().__exit__(*failure)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _WHOLE and args and isinstance(args[0], Tensor):
            self.note(name)
        return func(*args, **(kwargs or {}))
