"""Which tensors depend on the values of some others, while a model runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from .tree import flatten

_aten = torch.ops.aten
# What the host learns of a tensor's values, and may decide by.
_READS = (_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default)
# What takes a tensor for its shape, dtype and device alone.
_FORMS = (
    *(_aten.zeros_like.default, _aten.ones_like.default, _aten.empty_like.default, _aten.full_like.default),
    *(_aten.new_zeros.default, _aten.new_ones.default, _aten.new_empty.default, _aten.new_full.default),
)


class Taint(TorchDispatchMode):
    """Follows what is computed from some tensors, inside; memory that was written to from them counts whole.

    Attributes:
        read: whether the host has read a value that depends on them.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.read = False
        self._storages: set[StorageWeakRef] = set()

    def mark(self, tensor: Tensor) -> None:
        """Count a tensor among them."""
        self._storages.add(StorageWeakRef(tensor.untyped_storage()))

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is one of them, or depends on one."""
        return StorageWeakRef(tensor.untyped_storage()) in self._storages

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note what it makes of them."""
        output = func(*args, **(kwargs or {}))
        if func not in _FORMS and any(map(self.holds, flatten((args, kwargs or {}))[0])):
            self.read = self.read or func in _READS
            for tensor in flatten(output)[0]:
                self.mark(tensor)
        return output
