"""Which layers of a model a run prunes, and whether the solver takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from relaxprune.models.blocks import NO_BLOCKS, BlockList, is_language_model, output_head
from relaxprune.models.layers import PrunableLayer, SkippedLayer, check_patterns, matches
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
