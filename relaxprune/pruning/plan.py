"""What a pruning run will do, decided and checked before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from relaxprune.inputs.batches import refuse_unsupported
from relaxprune.models.blocks import NO_BLOCKS, BlockList, find_blocks, is_language_model, output_head
from relaxprune.models.layers import PrunableLayer, check_patterns, find_layers, matches
from relaxprune.options.allocation import MEASURED
from relaxprune.options.prune_options import PruneOptions, Target
from relaxprune.options.statistics_options import AUTO
from relaxprune.problems import Gram, MaskProblem
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.solvers import Solver
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES

from .block_tuning import check_tunable
from .layer_certificates import certificates_in_words
from .prune_report import SkippedLayer, skipped_lines, table

_SOLVER_MATRICES = 26  # float64 tensors of a layer's shape that solvers hold at most


@dataclass(frozen=True)
class Prediction:
    """What a run is expected to take on this machine.

    Attributes:
        seconds: by stage, as ``PruneReport.seconds`` has them; empty where ``unknown`` says why.
        peak_bytes: the largest resident size of the process.
        unknown: why the time is not predicted, or "".
    """

    seconds: dict[str, float]
    peak_bytes: int
    unknown: str = ""

    @property
    def total(self) -> float | None:
        """Seconds of the whole run, or None where they are not predicted."""
        return None if self.unknown else sum(self.seconds.values())

    def __str__(self) -> str:
        """Say it in one line."""
        memory = f"peak memory {self.peak_bytes / 2**30:.2f} GiB"
        if self.total is None:
            return f"predicted: {memory}; time not predicted: {self.unknown}"
        stages = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in self.seconds.items())
        return f"predicted: {self.total:.0f} s ({stages}), {memory}"


@dataclass(frozen=True)
class PlannedLayer:
    """One layer that will be pruned.

    Attributes:
        name: module name.
        kind: "Linear", "Conv1D" or "Conv2d".
        rows: outputs.
        cols: inputs.
        keep: entries kept in the whole matrix.
        block: index of its block; None outside of the blocks, where the order is known only once the model runs.
    """

    name: str
    kind: str
    rows: int
    cols: int
    keep: int
    block: int | None


@dataclass(frozen=True)
class PrunePlan:
    """All that a run will and will not touch. ``str()`` gives a table.

    Attributes:
        layers: what will be pruned, if a batch reaches it.
        skipped: every other matrix, with a reason.
        blocks: name of the list of blocks, "" when the model is pruned layer by layer.
        estimated_bytes: memory of a run, about, as ``estimate_bytes`` counts it.
        polytope: what was asked for, as in ``Target.to_dict``.
        certificates: what is proven of every layer, in words; "" for what the solver proves by itself.
        model_bytes: what of the estimate is the model itself.
        prediction: time and peak memory on this machine, or None where nothing was tried.
    """

    layers: list[PlannedLayer]
    skipped: list[SkippedLayer]
    blocks: str
    estimated_bytes: int
    polytope: dict[str, Any] = field(default_factory=dict)
    certificates: str = ""
    model_bytes: int = 0
    prediction: Prediction | None = None

    @property
    def added_bytes(self) -> int:
        """What a run holds beside the model, about."""
        return self.estimated_bytes - self.model_bytes

    def __str__(self) -> str:
        """Return one line per layer, the total, the certificates, and what is skipped."""
        lines: list[tuple[object, ...]] = [("layer", "kind", "block", "rows", "cols", "keep", "sparsity")]
        for layer in self.layers:
            block = "-" if layer.block is None else layer.block
            sparsity = 1 - layer.keep / (layer.rows * layer.cols)
            lines.append((layer.name, layer.kind, block, layer.rows, layer.cols, layer.keep, sparsity))
        entries = sum(layer.rows * layer.cols for layer in self.layers)
        total = (
            f"{len(self.layers)} layers, {entries:,} weights, about {self.estimated_bytes / 2**30:.2f} GiB of memory"
        )
        shares = []
        if self.polytope.get("allocation") in MEASURED:
            shares = [f"shares by a pass over the dense model ({self.polytope['allocation']}); above, all alike"]
        proofs = [f"certificates: {self.certificates}"] if self.certificates else []
        predicted = [] if self.prediction is None else [str(self.prediction)]
        return "\n".join([*table(lines), total, *shares, *predicted, *proofs, *skipped_lines(self.skipped)])


@dataclass(frozen=True, eq=False)
class Survey:
    """A plan together with the modules that it speaks of."""

    plan: PrunePlan
    layers: list[PrunableLayer]
    blocks: BlockList


def survey_model(
    model: nn.Module, target: Target, options: PruneOptions, tokens: int = 0, solver: Solver | None = None
) -> Survey:
    """Choose the layers and check that all of them can be pruned as asked.

    Raises:
        RelaxPruneError: a model that cannot be pruned, a target that does not fit a layer, a pattern that matches
            nothing, nothing left to prune, or a solver that cannot take a layer.
    """
    refuse_unsupported(model)
    found, skipped = find_layers(model)
    blocks = find_blocks(model, found)
    layers, left = select_layers(model, found, blocks, options)
    if not layers:
        raise RelaxPruneError(
            f"model must have a layer to prune, got a {type(model).__name__} in which all {len(found)} are left alone"
        )
    check_tunable(options.tune, layers, blocks)
    planned = []
    for layer in layers:
        if not bool(torch.isfinite(layer.stored).all()):
            raise RelaxPruneError(f"the weight of layer {layer.name!r} must be finite, got NaN or Inf")
        rows, cols = layer.shape
        keep = target.polytope_of(layer.name, (rows, cols)).kept((rows, cols))
        planned.append(PlannedLayer(layer.name, layer.kind, rows, cols, keep, blocks.index_of(layer)))
    if solver is not None:
        refuse_misfits(solver, layers, target, options)
    estimate = estimate_bytes(model, planned, options.memory_budget_bytes, tokens, options.certify is not None)
    if options.statistics.shrinkage == AUTO:
        estimate += sums_bytes(planned)  # the odd batches' sums besides
    estimate += moving_bytes(planned, options, tokens)
    words = certificates_in_words(options, solver)
    skips = [*skipped, *left]
    plan = PrunePlan(planned, skips, blocks.name, estimate, target.to_dict(), words, model_bytes(model))
    return Survey(plan, layers, blocks)


def refuse_misfits(solver: Solver, layers: Sequence[PrunableLayer], target: Target, options: PruneOptions) -> None:
    """Ask the solver about one layer of each shape, before hours of calibration and solving.

    Its Gram is not known yet and is taken as zero, whose checks cost next to nothing: solvers ask for shapes and sets.

    Raises:
        RelaxPruneError: the solver cannot take a layer, or not in the memory budget; the message names it.
    """
    for device in {layer.weight.device for layer in layers}:
        solver.check_device(device)
    if type(solver).check is Solver.check and options.memory_budget_bytes is None:
        return
    firsts: dict[tuple[int, int], PrunableLayer] = {}
    for layer in layers:
        firsts.setdefault(layer.shape, layer)
    for (rows, cols), layer in firsts.items():
        weight = layer.matrix().detach()
        gram = Gram(torch.zeros(cols, cols, device=weight.device))
        problem = MaskProblem(weight, gram, target.polytope_of(layer.name, (rows, cols)))
        try:
            solver.check(problem)
            options.check_memory(problem, solver)
        except RelaxPruneError as error:
            raise RelaxPruneError(f"layer {layer.name!r} of shape {(rows, cols)}: {error}") from error


def select_layers(
    model: nn.Module, found: Sequence[PrunableLayer], blocks: BlockList, options: PruneOptions
) -> tuple[list[PrunableLayer], list[SkippedLayer]]:
    """Split the prunable layers into chosen ones and those left alone, by patterns and defaults.

    Raises:
        RelaxPruneError: a pattern that matches no layer.
    """
    names = [layer.name for layer in found]
    check_patterns("include", options.include, names)
    check_patterns("exclude", options.exclude, names)
    head = output_head(model)
    only_blocks = blocks is not NO_BLOCKS and is_language_model(model)
    chosen: list[PrunableLayer] = []
    left: list[SkippedLayer] = []
    for layer in found:
        reason = None
        if matches(layer.name, options.exclude):
            reason = "excluded by a pattern"
        elif options.include and not matches(layer.name, options.include):
            reason = "matched by no include pattern"
        elif not options.include and layer.module is head:
            reason = "output head: left alone unless an include pattern names it"
        elif not options.include and only_blocks and blocks.index_of(layer) is None:
            reason = f"outside of the blocks {blocks.name!r}: left alone unless an include pattern names it"
        if reason is None:
            chosen.append(layer)
        else:
            left.append(SkippedLayer(layer.name, reason))
    return chosen, left


def estimate_bytes(
    model: nn.Module, layers: Sequence[PlannedLayer], budget: int | None, tokens: int, certified: bool = False
) -> int:
    """Estimate the memory of a run, in bytes; no bound: the interpreter and its libraries come on top.

    The sum of: the model; one byte per mask entry; float64 Gram sums of the block with the most (as if no layers
    shared one); for the layer that needs most its Gram in float32 and twice in float64 (the proof of its curvature),
    its weight in float32 and float64 (for a certificate, six times more in float64: the points of its candidates), and
    what the solver holds within its memory budget; and twice the hidden states of all tokens, as
    wide as the first layer's inputs. Attention masks and activations inside one block are not counted.
    """
    masks = sum(layer.rows * layer.cols for layer in layers)
    per_weight = 60 if certified else 12
    solving = max(20 * layer.cols**2 + per_weight * layer.rows * layer.cols for layer in layers)
    item = max(parameter.element_size() for parameter in model.parameters())
    states = 2 * tokens * layers[0].cols * item
    temporaries = max(8 * _SOLVER_MATRICES * layer.rows * layer.cols for layer in layers)
    solver = min(budget or DEFAULT_MEMORY_BYTES, temporaries)
    return model_bytes(model) + masks + sums_bytes(layers) + solving + solver + states


def moving_bytes(layers: Sequence[PlannedLayer], options: PruneOptions, tokens: int) -> int:
    """Return what ``correct`` and ``tune`` hold besides: two more sums for each Gram, and a block's weights again.

    The dense stream has the block's dense weights and hidden states of its own; tuning has the weights, Adam's two
    moments and the best so far, in float32.
    """
    blocks: dict[int | None, int] = {}
    for layer in layers:
        blocks[layer.block] = blocks.get(layer.block, 0) + 4 * layer.rows * layer.cols
    copies = 4 * bool(options.tune) + bool(options.correct or options.tune)
    beside = 2 * sums_bytes(layers) + 8 * tokens * layers[0].cols if options.correct else 0
    return copies * max(blocks.values()) + beside


def model_bytes(model: nn.Module) -> int:
    """Return the size of a model's parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def sums_bytes(layers: Sequence[PlannedLayer]) -> int:
    """Return the memory of the float64 Gram sums of the block with the most, as if no layers shared one."""
    sums: dict[int | None, int] = {}
    for layer in layers:
        sums[layer.block] = sums.get(layer.block, 0) + 8 * layer.cols**2
    return max(sums.values())
