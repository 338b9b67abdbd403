"""Notice when a caller changes, in place, a tensor that was checked and that cached numbers rest on."""

from __future__ import annotations

from torch import Tensor

from .errors import RelaxPruneError


class Unchanged:
    """Remembers torch's count of in-place changes of some tensors; views count with what they are views of.

    Args:
        **tensors: by the name that an error calls them; None and inference tensors, which have no count, are let pass.
    """

    def __init__(self, **tensors: Tensor | None) -> None:
        """Note the counts."""
        self._seen = [
            (name, tensor, tensor._version)
            for name, tensor in tensors.items()
            if tensor is not None and not tensor.is_inference()
        ]

    def check(self) -> None:
        """Raise RelaxPruneError if a tensor was changed in place since."""
        for name, tensor, version in self._seen:
            if tensor._version != version:
                raise RelaxPruneError(f"{name} was changed in place after it was checked; build a new problem from it")
