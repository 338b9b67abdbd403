"""How large a model's prunable layers are, from its config: no weight is read."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from relaxprune.models.blocks import find_blocks
from relaxprune.models.config_only import model_from_config
from relaxprune.models.layers import find_layers
from relaxprune.models.loading import LoadOptions
from relaxprune.problems.errors import RelaxPruneError


@dataclass(frozen=True)
class ModelSizes:
    """What a model consists of.

    Attributes:
        source: what was given.
        parameters: all of them.
        shapes: (rows, cols) of the weights in its blocks, which are pruned by default, with their number.
    """

    source: str
    parameters: int
    shapes: Counter[tuple[int, int]]

    @property
    def prunable(self) -> int:
        """Number of weights in the blocks."""
        return sum(rows * cols * count for (rows, cols), count in self.shapes.items())

    @property
    def widest(self) -> int:
        """The most columns of a layer."""
        return max(cols for _, cols in self.shapes)

    def bytes(self, bits: float = 16.0) -> float:
        """Return the model's bytes with everything else in 16 bits, and pruned weights in so many each."""
        return ((self.parameters - self.prunable) * 16.0 + self.prunable * bits) / 8

    def misfits(self, ask: str) -> int:
        """Return how many layers a pattern N:M of an ``ask`` does not divide."""
        pattern = re.search(r"\d+:(\d+)", ask)
        group = 1 if pattern is None else int(pattern[1])
        return sum(count for (_, cols), count in self.shapes.items() if cols % group)


def model_sizes(source: str, options: LoadOptions | None = None) -> ModelSizes:
    """Read a model's config and return its sizes.

    Args:
        source: as for ``load_model``.
        options: revision, cache and remote code; the others are not used.

    Raises:
        RelaxPruneError: there is no such model, or it has no weights to prune.
    """
    model = model_from_config(source, options).model
    model.tie_weights()
    layers, _ = find_layers(model)
    blocks = find_blocks(model, layers)
    shapes = Counter(layer.shape for layer in layers if blocks.index_of(layer) is not None)
    if not shapes:
        raise RelaxPruneError(f"model {source!r} has no blocks of layers to prune")
    return ModelSizes(source, sum(parameter.numel() for parameter in model.parameters()), shapes)
