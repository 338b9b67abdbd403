"""Planning a run: everything is decided and checked once, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from relaxprune.costs.memory import TokenCounts, run_bytes
from relaxprune.costs.planned_layer import PlannedLayer
from relaxprune.inputs.batches import count_windows, read_batches
from relaxprune.inputs.layer_grams import summed_parts
from relaxprune.inputs.output_check import OutputCheck
from relaxprune.models.adopted import adopted
from relaxprune.models.blocks import find_blocks
from relaxprune.models.forward import borrowed, refuse_unsupported
from relaxprune.models.layer_kinds import EMBEDDING
from relaxprune.models.layers import PrunableLayer, SkippedLayer, find_layers
from relaxprune.options.allocation import Allocation
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.target import Target
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes import Polytope
from relaxprune.residency import Residency
from relaxprune.residency.store import store_of
from relaxprune.solvers import Solver

from .coverage import count_matrices
from .layer_choice import EXCLUDED, NOT_INCLUDED, find_misfits, select_layers
from .objectives.following import check_loss
from .placement import refuse_whole_passes
from .plan import Plan
from .prediction import predict
from .prune_report import MISFIT
from .request import PruneRequest
from .tuning.block_tuner import check_tunable
from .tuning.kept_weights import check_differentiable


def plan_model(
    model: nn.Module,
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    polytope: Polytope | None = None,
    allocation: str | Allocation | None = None,
    solver: str | Solver | None = None,
    options: PruneOptions | None = None,
    tokens: int = 0,
    batches: Iterable[Any] | None = None,
    kinds: Sequence[str] | None = None,
    residency: Residency | None = None,
    **solver_options: Any,
) -> Plan:
    """Decide and check everything about a run of ``prune_model``; without ``batches`` nothing runs.

    Args:
        model: any module that computes on one device, offloaded by accelerate or not; transformers language models are
            pruned in their blocks only, unless ``options.include`` says otherwise.
        sparsity: fraction to prune in every row. Give exactly one of this, ``pattern`` and ``polytope``.
        pattern: "N:M", keep N of every M consecutive columns.
        polytope: one feasible set for all layers.
        allocation: how the sparsity is shared among layers and rows: "uniform", "layer", "owl", "model", or an
            ``Allocation`` with options. With "owl" and "model" a first pass over the dense model decides the layers'
            counts; all layers together then lose at most floor(sparsity * weights), rounded down to whole entries of
            every row. Layers that this pass does not reach get the sparsity itself. None for the published way of the
            solver: "layer" for "sparsegpt" and "alps", "uniform" for the others.
        solver: name or instance, as for ``solve``; None is "fw", or "reconstruct" if weights move. Weights move by
            default with "sparsegpt", "alps", "reconstruct" and "obs-swap"; ``options.weights`` says otherwise.
        options: which layers, and with how much effort; the defaults of ``PruneOptions`` if None.
        tokens: number of calibration tokens, for the memory estimate.
        batches: the calibration batches as ``prune_model`` takes them, to predict time and peak memory from a few
            seconds of trials, without the pass of an allocation. None to predict nothing.
        kinds: the kind of text of each window, as ``prune_model`` takes them, for both estimates.
        residency: where hidden states live between two blocks; None to leave them on the device. No answer depends on
            it. Where weights live is up to how the model was loaded, so its ``weights`` says that, or "device".
        **solver_options: options of the solver, as for ``solve``. With ``options.certify`` "diagonal" or "sdp", fw's
            ``tighten`` is "diagonal" unless it is given here: certificates start from there. An instance's "none"
            counts as not given.

    Returns:
        The plan, which ``prune_model(model, batches, plan=plan)`` carries out.

    Raises:
        RelaxPruneError: a model that cannot be pruned, a target that does not fit a layer, a pattern that matches
            nothing, nothing left to prune, a solver that ignores an option or cannot take a layer, or a residency
            whose weights live elsewhere than the model's.
    """
    target = Target(sparsity, pattern, polytope, None if allocation is None else Allocation.of(allocation))
    request = PruneRequest.of(target, solver, options, solver_options)
    counts = TokenCounts(all=tokens, at_once=tokens, kinds=len({*(kinds or ())}) or 1)
    with adopted(model):
        plan = make_plan(model, request, counts)
        if residency is not None:
            plan = replace(plan, residency=_where(residency, plan.residency.weights))
        return plan if batches is None else with_prediction(plan, batches, kinds)


def _where(residency: Residency, weights: str) -> Residency:
    """Return a residency with the place where a model's weights are, which it must not contradict.

    Raises:
        RelaxPruneError: it does.
    """
    if residency.weights not in (Residency.weights, weights):
        raise RelaxPruneError(
            f"residency must say weights={weights!r} for a model that was loaded so, got {residency.weights!r}: load "
            f"it with LoadOptions(offload={residency.weights!r})"
        )
    return replace(residency, weights=weights)


def make_plan(
    model: nn.Module,
    request: PruneRequest,
    tokens: TokenCounts | None = None,
    *,
    values: bool = True,
) -> Plan:
    """Plan what was asked for: choose the layers, and check that all of them can be pruned as asked.

    Args:
        model: the model.
        request: what was asked for.
        tokens: of the calibration text, for the memory estimate.
        values: False for a model on the meta device, whose shapes alone are planned with.

    Raises:
        RelaxPruneError: as ``plan_model`` says.
    """
    refuse_unsupported(model, values=values)
    refuse_whole_passes(model, request)
    found, skipped = find_layers(model)
    blocks = find_blocks(model, found)
    weights, left = select_layers(model, found, blocks, request.options)
    if not weights:
        others = sorted([*left, *skipped], key=lambda item: item.reason == EMBEDDING)
        first = "".join(f": {item.name!r} ({item.reason})" for item in others[:1])
        raise RelaxPruneError(
            f"model must have a layer to prune, got a {type(model).__name__} that has none, or is told to leave all "
            f"{len(found)} alone{first}"
        )
    unasked = {layer.name for layer in left if layer.reason in (EXCLUDED, NOT_INCLUDED)}
    check_tunable(request.options.tune, weights, blocks)
    if request.options.tune or request.options.whole_model or request.options.objective.active:
        check_differentiable(model)
    check_loss(request.options.objective, model, weights, blocks)
    weights, misfits = _fitting(request, weights)
    layers = []
    for layer in weights:
        if values and not bool(torch.isfinite(layer.stored).all()):
            raise RelaxPruneError(f"the weight of layer {layer.name!r} must be finite, got NaN or Inf")
        rows, cols = layer.shape
        keep = request.target.polytope_of(layer.name, (rows, cols)).kept((rows, cols))
        layers.append(PlannedLayer(layer.name, layer.kind, rows, cols, keep, blocks.index_of(layer)))
    return Plan(
        request=request,
        model=model,
        weights=weights,
        blocks=blocks,
        layers=layers,
        skipped=[*skipped, *left, *misfits],
        matrices=count_matrices(model, weights, [layer for layer in found if layer.name in unasked]),
        memory=run_bytes(model, blocks, layers, request.options, request.counted(tokens or TokenCounts())),
        residency=Residency(store_of(model).place),
    )


def _fitting(request: PruneRequest, layers: list[PrunableLayer]) -> tuple[list[PrunableLayer], list[SkippedLayer]]:
    """Split layers into those that can be pruned as asked, and those that cannot, which ``skip_misfits`` leaves alone.

    Raises:
        RelaxPruneError: one cannot and is not to be skipped, or none can.
    """
    misfits = find_misfits(request, layers)
    if misfits and (not request.options.skip_misfits or len(misfits) == len(layers)):
        first = next(layer for layer in layers if layer.name in misfits)
        reason = misfits[first.name]
        joint = " " if reason.startswith("does not fit") else ": "
        advice = "" if request.options.skip_misfits else "; skip_misfits=True (--skip-misfits) leaves such layers alone"
        raise RelaxPruneError(f"layer {first.name!r} of shape {first.shape}{joint}{reason}{advice}")
    skipped = [SkippedLayer(name, f"{MISFIT}: {reason}") for name, reason in misfits.items()]
    return [layer for layer in layers if layer.name not in misfits], skipped


def with_prediction(
    plan: Plan, batches: Iterable[Any], kinds: Sequence[str] | None = None, refine_batches: Sequence[Any] = ()
) -> Plan:
    """Return a plan of the layers that compute with their weights, with what the run is expected to take.

    The model runs on a batch for the one, and on a window for the other.
    """
    read, read_more = read_batches(batches), read_batches(refine_batches) if refine_batches else []
    parts = summed_parts(plan.request.options.statistics, read, kinds)
    with borrowed(plan.model), OutputCheck(plan.weights) as check:
        check.run(plan.model, read[0])
    plan = plan.without(check.failed)
    return replace(plan, prediction=predict(plan, read, parts, more=count_windows(read_more) / count_windows(read)))
