"""Counts the operations that a device would be asked to do, on any device: small ones cost their launching alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# They compute nothing.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}


class Launches(TorchDispatchMode):
    """Counts operations that compute something while it is entered; views and allocations do not.

    Attributes:
        names: how often each was called, by its name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self.names.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in _FREE:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))
