"""How large a model's prunable layers are, from its config: no weight is read."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from relaxprune.models.blocks import find_blocks
from relaxprune.models.config_only import model_from_config
from relaxprune.models.layers import find_layers
from relaxprune.models.loading import LoadOptions
from relaxprune.problems.errors import RelaxPruneError

_TAKEN = "Linear"  # the kind of layer whose weights the forms of all figures take
_WORDS = {"Expert": "fused experts"}


@dataclass(frozen=True)
class ModelSizes:
    """What a model consists of.

    Attributes:
        source: what was given.
        parameters: all of them.
        shapes: (rows, cols) of the nn.Linear weights in its blocks, which are pruned by default, with their number.
        others: kind and (rows, cols) of the other weights there, with their number: kinds as ``PrunableLayer`` has
            them. They can be pruned, but no form that is measured takes them.
    """

    source: str
    parameters: int
    shapes: Counter[tuple[int, int]]
    others: Counter[tuple[str, tuple[int, int]]] = field(default_factory=Counter)

    @property
    def layers(self) -> int:
        """Number of layers in the blocks."""
        return self.shapes.total() + self.others.total()

    @property
    def in_blocks(self) -> int:
        """Number of weights in the blocks."""
        return self.prunable + sum(rows * cols * count for (_, (rows, cols)), count in self.others.items())

    @property
    def prunable(self) -> int:
        """Number of weights in the blocks that a form can take: those of nn.Linear."""
        return sum(rows * cols * count for (rows, cols), count in self.shapes.items())

    @property
    def widest(self) -> int:
        """The most columns of a layer."""
        return max(cols for _, cols in [*self.shapes, *(shape for _, shape in self.others)])

    def bytes(self, bits: float = 16.0, ask: str = "") -> float:
        """Return the model's bytes: so many bits for each weight that an ``ask`` prunes in its form, 16 for others."""
        group = _group(ask)
        taken = sum(rows * cols * count for (rows, cols), count in self.shapes.items() if cols % group == 0)
        return ((self.parameters - taken) * 16.0 + taken * bits) / 8

    def misfits(self, ask: str) -> int:
        """Return how many nn.Linear layers a pattern N:M of an ``ask`` does not divide."""
        group = _group(ask)
        return sum(count for (_, cols), count in self.shapes.items() if cols % group)

    def left(self, ask: str) -> str:
        """Say which layers stay dense if one asks so, and why; "" if none does."""
        kinds: Counter[str] = Counter()
        for (kind, _), count in self.others.items():
            kinds[kind] += count
        reasons = [
            f"{count} are {_WORDS.get(kind, kind)}, which no form measured here takes" for kind, count in kinds.items()
        ]
        if odd := self.misfits(ask):
            reasons.append(f"{odd} have columns that {ask.split()[-1]} does not divide")
        return f"of {self.layers} layers {'; '.join(reasons)}" if reasons else ""


def _group(ask: str) -> int:
    """Return M of a pattern N:M in an ``ask``, 1 where there is none."""
    pattern = re.search(r"\d+:(\d+)", ask)
    return 1 if pattern is None else int(pattern[1])


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
    inside = [layer for layer in layers if blocks.index_of(layer) is not None]
    if not inside:
        raise RelaxPruneError(f"model {source!r} has no blocks of layers to prune")
    return ModelSizes(
        source,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shapes=Counter(layer.shape for layer in inside if layer.kind == _TAKEN),
        others=Counter((layer.kind, layer.shape) for layer in inside if layer.kind != _TAKEN),
    )
