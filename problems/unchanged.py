"""Notice when a caller changes, in place, a checked tensor that cached numbers depend on."""

from __future__ import annotations

from torch import Tensor

from .errors import RelaxPruneError


class Unchanged:
    """Remember torch's count of in-place changes of some tensors; a view shares the count of its base.

    Args:
        **tensors: by their names in error messages; None and inference tensors, which have no count, are skipped.
    """

    def __init__(self, **tensors: Tensor | None) -> None:
        """Note the counts."""
        self._seen = [
            (name, tensor, tensor._version)
            for name, tensor in tensors.items()
            if tensor is not None and not tensor.is_inference()
        ]

    def check(self) -> None:
        """Raise RelaxPruneError if a tensor was changed in place since then."""
        for name, tensor, version in self._seen:
            if tensor._version != version:
                raise RelaxPruneError(f"{name} was changed in place after it was checked; build a new problem from it")
