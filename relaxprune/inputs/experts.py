"""Observing fused experts: their matrices lie in one parameter, and they are no modules of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.homes import home_of, is_away

# (layer, inputs, rows): rows are the tokens that the inputs belong to, None if that is not known.
Heard = Callable[[PrunableLayer, Tensor, Tensor | None], None]
_PRODUCTS = (functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)
_SECOND = ("weight", "other", "tensor2")  # what they call the matrix


class ExpertListener(TorchFunctionMode):
    """Reports every product with an expert's matrix while it is active.

    The models' own loop over experts, which ``borrowed`` has them use, takes the tokens of each expert by an index and
    multiplies them with its matrix, a view into the parameter that is known by where it begins. The second matrix of an
    expert reads what the first one gave, in the same order of tokens.
    """

    def __init__(self, layers: Sequence[PrunableLayer], heard: Heard) -> None:
        """Prepare for the experts among some layers."""
        super().__init__()
        self._experts: dict[Tensor, list[PrunableLayer]] = {}
        for layer in layers:
            if layer.expert is not None:
                self._experts.setdefault(layer.weight, []).append(layer)
        self._there: set[tuple[Tensor, int]] = set()
        self._by_place: dict[int, PrunableLayer] = {}
        self._travel = any(home_of(weight) is not None for weight in self._experts)
        self._heard = heard
        self._taken: tuple[Tensor, Tensor] | None = None  # the tokens last taken by an index, and that index
        self._rows: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, and report it if it is a product with a known matrix."""
        named = kwargs or {}
        result = func(*args, **named)
        if func is Tensor.__getitem__:
            index = args[1]
            if isinstance(index, Tensor) and index.dim() == 1 and index.dtype == torch.int64:
                self._taken = (result, index)
        elif func in _PRODUCTS:
            matrix = next(iter((*args[1:2], *(named[name] for name in _SECOND if name in named))), None)
            if isinstance(matrix, Tensor) and matrix.dim() == 2:
                layer = self._places().get(matrix.data_ptr())
                if layer is not None:
                    self._refuse_other_products(layer, matrix.T if func is functional.linear else matrix)
                    self._tell(layer, args[0] if args else named["input"])
        return result

    def _places(self) -> dict[int, PrunableLayer]:
        """Return where the matrices of experts begin; blocks that travel bring theirs to other places."""
        if self._by_place and not self._travel:
            return self._by_place
        there = {(weight, weight.data_ptr()) for weight in self._experts if not is_away(weight)}
        if there != self._there:
            present = (layer for weight, _ in there for layer in self._experts[weight])
            self._there, self._by_place = there, {layer.stored.data_ptr(): layer for layer in present}
        return self._by_place

    def _refuse_other_products(self, layer: PrunableLayer, matrix: Tensor) -> None:
        """Raise RelaxPruneError unless inputs are multiplied with the layer's (cols, rows) from the right."""
        wanted = layer.matrix().T
        if matrix.shape != wanted.shape or matrix.stride() != wanted.stride():
            raise RelaxPruneError(
                f"expert {layer.name!r} must be multiplied as {tuple(wanted.shape)}, which is how its module says that "
                f"it is stored, got {tuple(matrix.shape)} with strides {matrix.stride()}; exclude this layer"
            )

    def _tell(self, layer: PrunableLayer, inputs: Tensor) -> None:
        """Report what a layer reads."""
        if self._taken is not None and self._taken[0] is inputs:
            self._rows = self._taken[1]
        elif self._rows is not None and len(self._rows) != len(inputs):
            self._rows = None
        self._heard(layer, inputs, self._rows)
