"""Layers by themselves: one of each shape, dense and converted, at several numbers of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from relaxprune.conversion.target import ConvertedModel

from .clock import Clock


@dataclass(frozen=True)
class LayerTime:
    """One layer at one number of tokens.

    Attributes:
        parameter: the first converted weight of its shape.
        rows, cols: of the weight.
        tokens: vectors that it is given at once.
        dense_s, converted_s: median seconds of a call.
    """

    parameter: str
    rows: int
    cols: int
    tokens: int
    dense_s: float
    converted_s: float

    @property
    def ratio(self) -> float:
        """Converted over dense: below 1 is faster."""
        return self.converted_s / self.dense_s


def layer_times(
    dense: nn.Module, converted: ConvertedModel, tokens: Sequence[int], clock: Clock
) -> Iterator[LayerTime]:
    """Yield the times of one layer of each shape, dense and converted in turn.

    Args:
        dense: the model with dense weights, on the clock's device, in the dtype of the converted one.
        converted: its modules are what is measured; there is nothing to yield without any.
        tokens: numbers of tokens.
        clock: measures.
    """
    seen: set[tuple[int, int]] = set()
    for parameter, module in converted.modules.items():
        plain = dense.get_submodule(parameter.removesuffix(".weight"))
        weight = dense.get_parameter(parameter)
        rows, cols = weight.shape
        if (rows, cols) in seen:
            continue
        seen.add((rows, cols))
        for count in tokens:
            generator = torch.Generator().manual_seed(count)
            inputs = torch.randn(count, cols, generator=generator).to(device=weight.device, dtype=weight.dtype)
            with torch.no_grad():
                times = clock.seconds(partial(plain, inputs), partial(module, inputs))
            yield LayerTime(parameter, rows, cols, count, *times)
