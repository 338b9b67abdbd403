"""The inputs of layers: batches through a model, and the Grams of what its layers read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .gram_accumulator import GramAccumulator as GramAccumulator

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "GramAccumulator": ".gram_accumulator",
    },
)
