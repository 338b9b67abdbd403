"""Prediction of a run's time and memory, from a few seconds of trials on this machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from relaxprune.costs.passes import forward_passes, gram_sums
from relaxprune.inputs.batches import Batch, run_model, split_windows
from relaxprune.inputs.gram_accumulator import CHUNK_TOKENS, GramAccumulator
from relaxprune.inputs.layer_listener import LayerListener
from relaxprune.inputs.parts import ONE_PART, Parts
from relaxprune.models.blocks import NO_BLOCKS
from relaxprune.models.forward import borrowed
from relaxprune.models.layers import PrunableLayer
from relaxprune.options.target import Decided
from relaxprune.problems import Gram
from relaxprune.residency.store import store_of
from relaxprune.solvers import Solver
from relaxprune.support.memory import peak_memory_bytes, resident_bytes

from .made_up import made_up_gram, made_up_inputs
from .mask_solver import MaskSolver
from .plan import Plan, Prediction
from .request import PruneRequest
from .selecting import ShrinkageSelector

_MULTIPLY_ADDS = 3e8  # of one product of the rows that are tried
_LEAST_ROWS = 64
_FEW, _MORE = 10, 30  # iterations whose difference gives the cost of one
_TOO_WIDE = 1536  # columns from which a certificate alone takes longer than all trying should


@dataclass(frozen=True, eq=False)
class Trial:
    """Times parts of a run, one call each."""

    request: PruneRequest
    clock: Callable[[], float] = time.perf_counter

    def timed(self, work: Callable[[], object]) -> float:
        """Return the seconds of one call."""
        started = self.clock()
        work()
        return self.clock() - started

    def layer(self, layer: PrunableLayer, planned: int) -> float:
        """Return the seconds that solving a layer in ``planned`` iterations takes."""
        rows, cols = layer.shape
        target, solver, asked = self.request.target, self.request.solver, self.request.options
        polytope = target.polytope_of(layer.name, (rows, cols))
        # A count over the layer that comes from a sparsity is one over some of its rows just as well.
        whole = polytope.rows_per_block((rows, cols)) > 1 and target.sparsity is None
        some = rows if whole else _rows(rows, cols)
        matrix = made_up_gram(cols).to(layer.weight.device)
        proof = self.timed(lambda: Gram(matrix).proof)
        part = nn.Parameter(layer.matrix()[:some].detach().clone(), requires_grad=False)
        tried = PrunableLayer(layer.name, layer.module, "Linear", part)
        inputs = made_up_inputs(matrix, tried, asked.objective)

        def solve(tool: Solver, iterations: int | None, polish: str | None) -> float:
            honoured = iterations if "max_iterations" in tool.budgets() else None
            options = replace(asked, max_iterations=honoured, polish=polish, time_limit_s=None)
            return self.timed(lambda: MaskSolver(Decided(target), tool, options).solve(tried, inputs, 0))

        solve(solver, _FEW, None)  # what a first call costs alone
        polisher = asked.polisher(solver)
        if planned <= _MORE:
            seconds = solve(solver, planned or None, asked.polish)
        else:
            few, more = solve(solver, _FEW, None), solve(solver, _MORE, None)
            each = max(0.0, more - few) / (_MORE - _FEW)
            seconds = max(0.0, few - _FEW * each) + each * planned
            if polisher is not None:
                seconds += solve(polisher, None, None) / 2  # it starts from a better mask in the run
        seconds = proof + rows / some * max(0.0, seconds - proof)
        limit = asked.time_limit_s
        return seconds if limit is None else min(seconds, limit + proof)

    def selection(self, layers: Sequence[PrunableLayer], parts: Parts) -> float:
        """Return the seconds that choosing the shrinkage of the Gram of some layers takes."""
        request = self.request
        selector = ShrinkageSelector.of(MaskSolver(Decided(request.target), request.solver, request.options), parts)
        if selector is None:
            return 0.0
        some = selector.samples(layers)
        matrix = made_up_gram(layers[0].shape[1]).to(layers[0].weight.device)
        list(selector.solved(some, matrix))  # what a first call costs alone
        return self.timed(lambda: list(selector.solved(some, matrix))) * selector.solves

    def gram(self, cols: int, tokens: int) -> float:
        """Return the seconds of adding some tokens of ``cols`` features to a Gram."""
        count = min(tokens, CHUNK_TOKENS)
        accumulator = GramAccumulator(cols)
        inputs = torch.linspace(-1, 1, count * cols).view(count, cols)
        accumulator.add(inputs)
        return self.timed(lambda: accumulator.add(inputs)) * tokens / count


def predict(
    plan: Plan,
    batches: Sequence[Batch],
    parts: Parts = ONE_PART,
    more: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Prediction:
    """Predict a run of ``prune_model`` over ``batches``, by trying it for a few seconds.

    One window goes through the model; each distinct shape is solved on made-up inputs for a few iterations, on some of
    its rows; the rest is multiplication.

    Args:
        plan: the plan; the model is left as it is.
        batches: the calibration batches.
        parts: in which they are summed.
        more: text that only ``refine`` and ``reselect`` read, as a multiple of the batches.
        clock: seconds.
    """
    trial, model, options, solver = Trial(plan.request, clock), plan.model, plan.request.options, plan.request.solver
    memory = predicted_bytes(plan)
    if options.certify is not None and max(layer.shape[1] for layer in plan.weights) > _TOO_WIDE:
        return Prediction({}, memory, f"certificates of layers with more than {_TOO_WIDE} columns")
    if options.certify == "sdp":
        return Prediction({}, memory, 'certificates by "sdp"')
    if options.reselect:
        return Prediction({}, memory, "choosing masks again (reselect)")
    planned = solver.planned_iterations(options.max_iterations)
    if planned is None:
        return Prediction({}, memory, f"solver {solver.name!r} does not know how long it searches")
    windows = split_windows(batches[0])
    window, share = windows[0], float(len(windows))
    collector = LayerListener(plan.weights)
    with borrowed(model):
        with collector.listening(0, window.kept, window.decoder_kept):
            run_model(model, window)
        forward = trial.timed(lambda: run_model(model, window)) * share * len(batches)
    tokens = int(share * len(batches) * _tokens(window))
    shapes = Counter(layer.shape for layer in plan.weights)
    firsts = {layer.shape: layer for layer in reversed(plan.weights)}
    solving = {shape: trial.layer(layer, planned) for shape, layer in firsts.items()}
    widths = Counter(group.layers[0].shape[1] for group in collector.groups)
    own = Counter(layer.shape[1] for layer in plan.weights)
    sums = {cols: trial.gram(cols, tokens) for cols in own}
    grams = sum(count * sums[cols] for cols, count in widths.items())
    rerun = plan.blocks is NO_BLOCKS
    stages = len(collector.groups) if rerun else 1
    solve = sum(count * solving[shape] for shape, count in shapes.items())
    passes = forward_passes(options, more)
    seconds = {"statistics": passes["statistics"] * forward * stages + gram_sums(options) * grams, "solve": solve}
    seconds["statistics"] += options.objective.grams * sum(count * sums[cols] for cols, count in own.items())
    if not rerun:
        seconds["propagate"] = (passes["capture"] + passes["propagate"]) * forward
    if options.statistics.select:
        seconds["select"] = _selecting(trial, collector, parts)
    seconds |= {stage: passes[stage] * forward for stage in ("gradients", "tune", "refine") if stage in passes}
    return Prediction(seconds, memory)


def _selecting(trial: Trial, collector: LayerListener, parts: Parts) -> float:
    """Return the seconds that choosing the shrinkages of all Grams takes; layers that were not reached share none."""
    reached, missed = collector.in_order()
    shared = [*reached, *((layer,) for layer in missed)]
    counts = Counter(tuple(layer.shape for layer in layers) for layers in shared)
    firsts = {tuple(layer.shape for layer in layers): layers for layers in shared}
    return sum(count * trial.selection(firsts[shapes], parts) for shapes, count in counts.items())


def predicted_bytes(plan: Plan) -> int:
    """Return the largest resident size of the process, the interpreter and the model included."""
    store = store_of(plan.model)
    present = (resident_bytes() or 0) - store.present_bytes(plan.model_bytes)
    return max(peak_memory_bytes() or 0, present + store.room_bytes + plan.estimated_bytes)


def _rows(rows: int, cols: int) -> int:
    """Return how many rows to try."""
    return min(rows, max(_LEAST_ROWS, int(_MULTIPLY_ADDS / cols**2)))


def _tokens(batch: Batch) -> int:
    """Return how many tokens a batch has."""
    if batch.kept is not None:
        return int(batch.kept.sum())
    values = [value for value in (*batch.args, *batch.kwargs.values()) if isinstance(value, Tensor)]
    return max(int(value.numel()) if not value.is_floating_point() else len(value) for value in values)
