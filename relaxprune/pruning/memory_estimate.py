"""The memory of a pruning run, estimated from the shapes of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from relaxprune.inputs.parts import most_parts
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.statistics_options import AUTO
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES

from .plan import PlannedLayer

_LOGITS_BYTES = 2**29  # of the tokens whose logits are held at once, several times in float32
_SOLVER_MATRICES = 26  # float64 tensors of a layer's shape that solvers hold at most


def model_bytes(model: nn.Module) -> int:
    """Return the size of a model's parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def added_bytes(
    model: nn.Module,
    layers: Sequence[PlannedLayer],
    options: PruneOptions,
    tokens: int,
    kinds: int = 1,
    refine_tokens: int = 0,
) -> int:
    """Estimate the bytes that a run holds in addition to the model, without the interpreter and its libraries.

    The sum of: one byte per mask entry; float64 Gram sums of the block with the most (as if no layers shared one), for
    each part of the text if the shrinkage is estimated or chosen; for the layer that needs most its Gram in float32 and
    twice in float64 (the proof of its curvature), its weight in float32 and float64 (for a certificate, six times more
    in float64: the points of its candidates), and what the solver holds within its memory budget; and twice the hidden
    states of all tokens, as wide as the first layer's inputs. Attention masks and activations inside one block are not
    counted. Refining comes after all that, and counts where it takes more: each weight in float32 four times (Adam's
    two moments and the gradient besides the weight) and three times in the model's own dtype, and the dense model's
    predictions.

    Args:
        model: the model.
        layers: what is pruned.
        options: how.
        tokens: of the calibration text.
        kinds: of text among them.
        refine_tokens: of text that only ``refine`` reads.
    """
    sums = _largest_block(layers, lambda layer: 8 * layer.cols**2)
    masks = sum(layer.rows * layer.cols for layer in layers)
    per_weight = 12 if options.certify is None else 60
    solving = max(20 * layer.cols**2 + per_weight * layer.rows * layer.cols for layer in layers)
    item = max(parameter.element_size() for parameter in model.parameters())
    states = states_bytes(model, layers, tokens)
    temporaries = max(8 * _SOLVER_MATRICES * layer.rows * layer.cols for layer in layers)
    solver = min(options.memory_budget_bytes or DEFAULT_MEMORY_BYTES, temporaries)
    pruning = (
        sums
        + _apart_bytes(layers, options, sums, kinds)
        + solving
        + solver
        + states
        + _moving_bytes(layers, options, tokens, sums)
    )
    if not options.refine:
        return masks + pruning
    refining = sum((16 + 3 * item + 1) * layer.rows * layer.cols for layer in layers) + _LOGITS_BYTES
    predictions = (tokens + refine_tokens) * layers[0].cols * item
    return masks + max(pruning, refining) + predictions


def states_bytes(model: nn.Module, layers: Sequence[PlannedLayer], tokens: int) -> int:
    """Return the bytes of twice the hidden states of all tokens; arguments as for ``added_bytes``."""
    item = max(parameter.element_size() for parameter in model.parameters())
    return 2 * tokens * layers[0].cols * item


def _apart_bytes(layers: Sequence[PlannedLayer], options: PruneOptions, sums: int, kinds: int) -> int:
    """Return the bytes of the sums of single parts, and of the Grams that candidates for the shrinkage are tried on."""
    if not options.statistics.select:
        return sums if options.statistics.shrinkage == AUTO else 0
    tried = max(8 * (3 + kinds) * layer.cols**2 for layer in layers)
    return (most_parts(kinds) - 1) * sums + tried


def _moving_bytes(layers: Sequence[PlannedLayer], options: PruneOptions, tokens: int, sums: int) -> int:
    """Return the bytes that ``correct`` and ``tune`` add: two more sums for each Gram, and a block's weights again.

    The dense stream has the block's dense weights and hidden states of its own; tuning has the weights, Adam's two
    moments and the best so far, in float32.
    """
    weights = _largest_block(layers, lambda layer: 4 * layer.rows * layer.cols)
    copies = 4 * bool(options.tune) + bool(options.correct or options.tune)
    beside = 2 * sums + 8 * tokens * layers[0].cols if options.correct else 0
    return copies * weights + beside


def _largest_block(layers: Sequence[PlannedLayer], size: Callable[[PlannedLayer], int]) -> int:
    """Return the largest sum of sizes over the layers of one block."""
    blocks: dict[int | None, int] = {}
    for layer in layers:
        blocks[layer.block] = blocks.get(layer.block, 0) + size(layer)
    return max(blocks.values())
