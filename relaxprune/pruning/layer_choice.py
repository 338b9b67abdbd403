"""Which layers of a model a run prunes, and whether the solver takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from relaxprune.models.blocks import NO_BLOCKS, BlockList, embedding_shapes, language_model, output_heads
from relaxprune.models.layers import PrunableLayer, SkippedLayer, check_patterns, matches
from relaxprune.models.routers import find_routers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import Gram, MaskProblem
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.solvers import Solver

from .request import PruneRequest


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
    defaults = _left_by_default(model, found, blocks)
    chosen: list[PrunableLayer] = []
    left: list[SkippedLayer] = []
    for layer in found:
        reason = None
        if matches(layer.name, options.exclude):
            reason = "excluded by a pattern"
        elif options.include and not matches(layer.name, options.include):
            reason = "matched by no include pattern"
        elif not options.include and layer.name in defaults:
            reason = f"{defaults[layer.name]}: left alone unless an include pattern names it"
        if reason is None:
            chosen.append(layer)
        else:
            left.append(SkippedLayer(layer.name, reason))
    return chosen, left


def _left_by_default(model: nn.Module, found: Sequence[PrunableLayer], blocks: BlockList) -> dict[str, str]:
    """Return the layers that are pruned only where a pattern names them, each with what it is."""
    heads, routers, scores = output_heads(model), find_routers(model), embedding_shapes(model)
    only_blocks = blocks is not NO_BLOCKS and language_model(model, blocks.name) is not None
    left = {}
    for layer in found:
        outside = blocks.index_of(layer) is None
        if layer.module in heads:
            left[layer.name] = "output head"
        elif layer.module in routers:
            left[layer.name] = "router of a mixture of experts"
        elif only_blocks and outside:
            left[layer.name] = f"outside of the blocks {blocks.name!r}"
        elif outside and layer.kind == "Linear" and layer.shape in scores:
            left[layer.name] = "as many outputs as an embedding has entries, and so taken for the output head"
    return left


def refuse_misfits(request: PruneRequest, layers: Sequence[PrunableLayer]) -> None:
    """Ask the solver about one layer of each shape, before hours of calibration and solving.

    Its Gram is not known yet and is taken as zero, whose checks cost next to nothing: solvers ask for shapes and sets.

    Raises:
        RelaxPruneError: the solver cannot take a layer, or not in the memory budget; the message names it.
    """
    target, solver, options = request.target, request.solver, request.options
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
