"""The memory that the gradients of a run's objective take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from relaxprune.models.blocks import embedding_shapes
from relaxprune.options.objective_options import ObjectiveOptions

from .planned_layer import PlannedLayer

_LOGITS = 3  # of the tokens at once in float32 or wider: as the model gives them, their softmax, and its gradient


@dataclass(frozen=True)
class _Kept:
    """What a kind of objective keeps for a layer.

    Attributes:
        sums: bytes while a block's evidence and sums are gathered.
        solving: bytes beside that while the layer is solved.
    """

    sums: Callable[[PlannedLayer, ObjectiveOptions, int], int]
    solving: Callable[[PlannedLayer, ObjectiveOptions], int]


_BY_KIND: Mapping[str, _Kept] = {
    # Squares and weights of tokens, and a float64 sum for each group; then the groups' Grams, and their proofs.
    "rows": _Kept(
        lambda layer, asked, tokens: asked.count * (8 * layer.cols**2 + 24 * tokens),
        lambda layer, asked: 20 * asked.count * layer.cols**2,
    ),
    # The lines of F, once more in the order of rows, and what the solver makes of them.
    "fisher": _Kept(
        lambda layer, asked, tokens: 4 * asked.count * layer.rows * layer.cols,
        lambda layer, asked: 20 * asked.count * layer.rows * layer.cols,
    ),
    # The moment, then like a Gram's.
    "coupled": _Kept(
        lambda layer, asked, tokens: 8 * layer.rows**2,
        lambda layer, asked: 20 * layer.rows**2,
    ),
}


def gradient_bytes(
    model: nn.Module, blocks: int, layers: Sequence[PlannedLayer], asked: ObjectiveOptions, tokens: tuple[int, int]
) -> int:
    """Return the bytes that an objective takes beside all else, 0 for the Gram alone.

    That is: the gradients at what all blocks put out and a second stream of hidden states, both as wide as the first
    layer's inputs, for all tokens; logits of those at once; what is kept of the layers of the block with most, and what
    solving the one that needs most takes.

    Args:
        model: its embeddings say how wide logits are, its parameters what states are held in.
        blocks: how many there are.
        layers: what is pruned.
        asked: the objective.
        tokens: of all calibration text, and at once.
    """
    if not asked.active:
        return 0
    kept, (every, at_once) = _BY_KIND[asked.kind], tokens
    item = max(parameter.element_size() for parameter in model.parameters())
    logits = _LOGITS * max(item, 4) * at_once * max((shape[0] for shape in embedding_shapes(model)), default=0)
    of_blocks: dict[int | None, int] = {}
    for layer in layers:
        of_blocks[layer.block] = of_blocks.get(layer.block, 0) + kept.sums(layer, asked, every)
    states = (blocks + 1) * every * layers[0].cols * item
    return states + max(logits, max(of_blocks.values()) + max(kept.solving(layer, asked) for layer in layers))
