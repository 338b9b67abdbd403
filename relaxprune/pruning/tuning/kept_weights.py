"""The kept weights of pruned layers, moved together by Adam while pruned ones stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .recipes import Recipe

Found = TypeVar("Found")


class KeptWeights:
    """Some layers' kept weights, with a copy of each parameter in float32 that Adam moves.

    The model gets every step in its own dtype; entries that may not move keep their bits.

    Attributes:
        parameters: the parameters that the layers lie in; fused experts share one.

    Args:
        layers: the layers.
        supports: parameter name -> (rows, cols) bool, where a layer's weights may move.
        recipe: Adam's rate.
        fused: whether torch's fused kernel takes the steps, without temporaries of the size of all weights.
    """

    def __init__(
        self, layers: Sequence[PrunableLayer], supports: Mapping[str, Tensor], recipe: Recipe, *, fused: bool = False
    ) -> None:
        groups: dict[int, list[PrunableLayer]] = {}
        for layer in layers:
            groups.setdefault(id(layer.weight), []).append(layer)
        self.parameters: list[Tensor] = [group[0].weight for group in groups.values()]
        self._patience = recipe.patience
        self._kept = [_kept(group, supports) for group in groups.values()]
        values = [parameter.detach() for parameter in self.parameters]
        self._masters = [value.to(torch.promote_types(value.dtype, torch.float32), copy=True) for value in values]
        sizes = [float(_rms(*pair)) if recipe.relative else 1.0 for pair in zip(self._masters, self._kept, strict=True)]
        self._rates = [recipe.rate * size for size in sizes]
        groups_of_one = [{"params": [m], "lr": r} for m, r in zip(self._masters, self._rates, strict=True)]
        self._optimiser = torch.optim.Adam(groups_of_one, fused=fused or None)

    def tracked(self, others: Iterable[Tensor] = ()) -> AbstractContextManager[None]:
        """Have gradients for these parameters, and none for ``others``; then all flags are as before."""
        return tracked(self.parameters, others)

    def slopes(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the next step."""
        found: Sequence[Tensor | None] = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for master, slope, kept in zip(self._masters, found, self._kept, strict=True):
            if slope is None:
                continue
            slope = slope.to(master.dtype) * kept
            master.grad = slope if master.grad is None else master.grad.add_(slope)

    def step(self, share: float = 1.0, count: int = 1) -> None:
        """Take a step and write it into the model.

        Args:
            share: of the rate.
            count: what the gradients are divided by.
        """
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        if count != 1:
            for master in self._masters:
                if master.grad is not None:
                    master.grad.div_(count)
        self._optimiser.step()
        self._optimiser.zero_grad()
        with torch.no_grad():
            for parameter, master, kept in zip(self.parameters, self._masters, self._kept, strict=True):
                parameter.copy_(torch.where(kept, master.to(parameter.dtype), parameter))

    def improve(
        self, passes: int, take: Callable[[int], Found], score: Callable[[Found], float], start: Found
    ) -> tuple[int, Found]:
        """Take passes over the text until as many as the recipe allows got worse one after the other.

        The best weights stay, also after an exception.

        Args:
            passes: the most passes.
            take: takes a pass, by its number from 1, and returns what was found of held-out text after it.
            score: of what was found, lower is better; a pass with NaN is not better.
            start: what is found before the first pass.

        Returns:
            How many passes the weights that stay have taken, and what was found after them.
        """
        best, taken, least = self._snapshot(), 0, start
        lowest = latest = score(start)
        worse = 0
        try:
            for number in range(1, passes + 1):
                found = take(number)
                before, latest = latest, score(found)
                if latest < lowest:
                    best, taken, least, lowest = self._snapshot(), number, found, latest
                worse = 0 if latest < before else worse + 1
                if worse == self._patience or not math.isfinite(latest):
                    break
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, best, strict=True):
                    parameter.copy_(value)
        return taken, least

    def _snapshot(self) -> list[Tensor]:
        """Return the parameters as they are now, on the CPU."""
        return [parameter.detach().to("cpu", copy=True) for parameter in self.parameters]


@contextmanager
def tracked(parameters: Sequence[Tensor], others: Iterable[Tensor] = ()) -> Iterator[None]:
    """Have gradients for some parameters, and none for others; then all flags are as before."""
    flags = [(tensor, tensor.requires_grad) for tensor in (*others, *parameters)]
    try:
        for tensor, _ in flags:
            tensor.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for tensor, flag in flags:
            tensor.requires_grad_(flag)


def check_differentiable(model: nn.Module) -> None:
    """Raise RelaxPruneError if gradients cannot go through a buffer of a model."""
    for name, buffer in model.named_buffers():
        if buffer.is_inference():
            raise RelaxPruneError(
                "tune, refine, reselect and objective need a model whose buffers let gradients through, got the "
                f"inference tensor {name!r}: make it outside of torch.inference_mode()"
            )


def _kept(layers: Sequence[PrunableLayer], supports: Mapping[str, Tensor]) -> Tensor:
    """Return where one parameter may move, in its shape, from the supports of the layers that lie in it."""
    if layers[0].expert is None:
        return layers[0].as_stored(supports[layers[0].parameter])
    kept = torch.zeros_like(layers[0].weight, dtype=torch.bool)
    for layer in layers:
        kept[layer.expert] = layer.as_stored(supports[layer.parameter])
    return kept


def _rms(weight: Tensor, kept: Tensor) -> Tensor:
    """Return the root mean square of the kept weights."""
    return (weight.square() * kept).sum().div(kept.sum().clamp(min=1)).sqrt()
