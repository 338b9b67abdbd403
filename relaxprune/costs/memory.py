"""The memory of a pruning run, estimated from the shapes of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from relaxprune.inputs.parts import most_parts
from relaxprune.models.blocks import BlockList
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.statistics_options import AUTO
from relaxprune.problems.checks import whole_number
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES

from .gradients import gradient_bytes
from .planned_layer import PlannedLayer

_LOGITS_BYTES = 2**29  # of the tokens whose logits are held at once, several times in float32
_TRAVELLING_BLOCKS = 2  # the one that is pruned, and the next one, which is read meanwhile
SOLVER_MATRICES = 26  # float64 tensors of a layer's shape that solvers hold at most
GRAM_BYTES = 20  # the Gram in float32, and twice in float64 for the proof of its curvature
WEIGHT_BYTES = 12  # of an answer, for each weight, in float32 and float64
CERTIFIED_BYTES = 60  # the same with a certificate: the points of its candidates


@dataclass(frozen=True, kw_only=True)
class RunBytes:
    """The bytes of what a run holds, without the interpreter and its libraries.

    Attributes:
        model: all parameters.
        travelling: parameters outside of the blocks, the largest block, and the one after it.
        states: twice the hidden states of all tokens, as wide as the first layer's inputs.
        working: sums of one block, and what solving the layer that needs most takes.
        records: of all finished blocks: masks, a byte for every entry, and the new values of weights that move.
        block_records: the same of the block with the most.
        packed_records: the same of all blocks, masks as bits.
        batch_states: the part of ``states`` of the tokens that go through the model at once.
        refining: weights, Adam's moments and logits while the whole model is refined, or Grams while its masks are
            chosen again; 0 if neither is asked for.
        predictions: of the dense model, which are held until then.
        allocating: what all layers put out for some tokens, and its gradients, before anything is pruned.
    """

    model: int
    travelling: int
    states: int
    working: int
    records: int = 0
    block_records: int = 0
    packed_records: int = 0
    batch_states: int = 0
    refining: int = 0
    predictions: int = 0
    allocating: int = 0

    @property
    def added(self) -> int:
        """What a run holds in addition to the model, if all of it is in one memory."""
        return self.records + max(self.working + self.states, self.refining, self.allocating) + self.predictions

    def beside(self, held: int) -> RunBytes:
        """Return the same for a process that holds so many bytes in addition all the time."""
        parts = {name: getattr(self, name) for name in ("working", "refining", "allocating")}
        return replace(self, **{name: size + held for name, size in parts.items() if size})

    def of_rank(self, world: int, *, every_batch: bool = False) -> RunBytes:
        """Return the same for one of the ranks that share the run, the one that holds most.

        Each has its part of the batches, at least one. The leader alone has files of finished blocks; the others hold
        the records of all blocks, masks as bits where weights travel. That ranks make all Grams of a block before they
        solve adds nothing: two float32 matrices of each, with damping, take the place of its float64 sums.

        Args:
            world: how many ranks there are.
            every_batch: whether each has all batches (``PruneOptions.whole_text``).
        """
        if world == 1:
            return self
        states = self.states
        if self.batch_states and not every_batch:
            batches = -(-self.states // self.batch_states)
            states = min(self.states, -(-batches // world) * self.batch_states)
        return replace(self, states=states, block_records=self.packed_records + self.block_records)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers."""
        return {**vars(self), "added": self.added}


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """How much calibration text a run reads.

    Attributes:
        all: its tokens.
        at_once: of those that go through the model together.
        kinds: of text among them.
        refining: further tokens, of text that only ``refine`` reads.
        backward: of those that gradients go back through at once, to share the sparsity; 0 for none.
    """

    all: int = 0
    at_once: int = 0
    kinds: int = 1
    refining: int = 0
    backward: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no number of tokens.

        Raises:
            RelaxPruneError: naming it.
        """
        whole_number("tokens", self.all, 0)


def parameter_bytes(module: nn.Module) -> int:
    """Return the size of a module's parameters, tied ones once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def run_bytes(
    model: nn.Module,
    blocks: BlockList,
    layers: Sequence[PlannedLayer],
    options: PruneOptions,
    tokens: TokenCounts,
    matrices: float = SOLVER_MATRICES,
) -> RunBytes:
    """Estimate the bytes of a run from shapes; values of the model's tensors are not looked at.

    ``working`` is the sum of what ``gradient_bytes`` says, and of: float64 Gram sums of the block with the most (as if
    no layers shared one), for each part of the text if the shrinkage is estimated or chosen; for the layer that needs
    most its Gram in float32 and twice in float64 (the proof of its curvature), its weight in float32 and float64 (for a
    certificate, six times more in float64: the points of its candidates), and what the solver holds within its memory
    budget. Attention masks and activations inside one block are not counted. Refining comes after all that, and counts
    where it takes more: each weight in float32 four times (Adam's two moments and the gradient besides the weight) and
    three times in the model's own dtype, and the dense model's predictions. So does choosing masks again: each weight
    in the model's own dtype from the start of the run, and then its gradient, three candidates and all layers' Grams.

    Args:
        model: the model.
        blocks: its blocks.
        layers: what is pruned.
        options: how.
        tokens: of the calibration text.
        matrices: float64 tensors of a layer's shape that the solver holds, as it counts them itself; else the most that
            any solver does.
    """
    sums = _largest_block(layers, lambda layer: 8 * layer.cols**2)
    per_weight = WEIGHT_BYTES if options.certify is None else CERTIFIED_BYTES
    solving = max(GRAM_BYTES * layer.cols**2 + per_weight * layer.rows * layer.cols for layer in layers)
    item = max(parameter.element_size() for parameter in model.parameters())
    temporaries = max(int(8 * matrices * layer.rows * layer.cols) for layer in layers)
    solver = min(options.memory_budget_bytes or DEFAULT_MEMORY_BYTES, temporaries)
    whole = parameter_bytes(model)
    inside = [parameter_bytes(block) for block in blocks.modules]
    kept = 1 + (item if options.block_values else 0) + (item if options.reselect else 0)
    return RunBytes(
        model=whole,
        travelling=min(whole, whole - sum(inside) + _TRAVELLING_BLOCKS * max(inside, default=0)),
        records=sum(kept * layer.rows * layer.cols for layer in layers),
        packed_records=sum(layer.rows * (-(-layer.cols // 8) + (kept - 1) * layer.cols) for layer in layers),
        block_records=_largest_block(layers, lambda layer: kept * layer.rows * layer.cols),
        states=2 * tokens.all * layers[0].cols * item,
        batch_states=2 * tokens.at_once * layers[0].cols * item,
        working=sums
        + _apart_bytes(layers, options, sums, tokens.kinds)
        + solving
        + solver
        + _moving_bytes(layers, options, tokens.all, sums)
        + gradient_bytes(model, len(blocks.modules), layers, options.objective, (tokens.all, tokens.at_once)),
        refining=max(_refining_bytes(layers, options, item)),
        allocating=2 * item * tokens.backward * sum(layer.rows for layer in layers),
        predictions=(tokens.all + tokens.refining) * layers[0].cols * item if options.whole_model else 0,
    )


def _refining_bytes(layers: Sequence[PlannedLayer], options: PruneOptions, item: int) -> Iterator[int]:
    """Yield what each change of the whole model takes at once, of a model with ``item`` bytes a number; 0 for none."""
    yield 0
    if options.refine:
        yield sum((16 + 3 * item + 1) * layer.rows * layer.cols for layer in layers) + _LOGITS_BYTES
    if options.reselect:
        grams = sum(GRAM_BYTES * layer.cols**2 for layer in layers)
        yield sum((4 + 4 * item + 4) * layer.rows * layer.cols for layer in layers) + grams + _LOGITS_BYTES


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
