"""Which layers of a model a run prunes, and whether the solver takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from relaxprune.models.blocks import NO_BLOCKS, BlockList, embedding_shapes, has_two_sides, language_model, output_heads
from relaxprune.models.layers import PrunableLayer, SkippedLayer, check_patterns, matches
from relaxprune.models.routers import find_routers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import Gram, MaskProblem
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.solvers import Solver
from relaxprune.solvers.coupling import check_coupling

from .objectives.terms import made_up
from .prune_report import OTHER_SIDE
from .request import PruneRequest

# What the user has chosen to leave alone.
EXCLUDED, NOT_INCLUDED = "excluded by a pattern", "matched by no include pattern"


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
            reason = EXCLUDED
        elif options.include and not matches(layer.name, options.include):
            reason = NOT_INCLUDED
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
    both = has_two_sides(model)
    left = {}
    for layer in found:
        outside = blocks.index_of(layer) is None
        if layer.module in heads:
            left[layer.name] = "output head"
        elif layer.module in routers:
            left[layer.name] = "router of a mixture of experts"
        elif only_blocks and outside and (other := blocks.other_of(layer)) is None:
            left[layer.name] = f"outside of the blocks {blocks.name!r}"
        elif only_blocks and outside and not both:
            left[layer.name] = f"{OTHER_SIDE} {other!r}, not of {blocks.name!r}"
        elif outside and layer.kind == "Linear" and layer.shape in scores:
            left[layer.name] = "as many outputs as an embedding has entries, and so taken for the output head"
    return left


def find_misfits(request: PruneRequest, layers: Sequence[PrunableLayer]) -> dict[str, str]:
    """Ask the target about every layer, and the solver about one of each shape, before hours of work.

    A Gram is not known yet and is taken as zero, whose checks cost next to nothing: solvers ask for shapes and sets.

    Returns:
        Layer -> why it cannot be pruned as asked: its shape does not fit the set of masks, the solver cannot take it,
        or not in the memory budget.

    Raises:
        RelaxPruneError: the solver does not run on the device of a layer.
    """
    for device in {layer.weight.device for layer in layers if not layer.weight.is_meta}:
        request.solver.check_device(device)
    found: dict[str, str] = {}
    shapes: dict[tuple[int, int], str | None] = {}
    for layer in layers:
        if layer.shape not in shapes:
            shapes[layer.shape] = _misfit(request, layer)
        if (reason := shapes[layer.shape]) is not None:
            found[layer.name] = reason
    return found


def _misfit(request: PruneRequest, layer: PrunableLayer) -> str | None:
    """Return why layers of this one's shape cannot be pruned as asked, None where they can."""
    target, solver, options = request.target, request.solver, request.options
    try:
        polytope = target.polytope_of(layer.name, layer.shape)
    except RelaxPruneError as error:
        return f"does not fit: {error.__cause__ or error}"
    gradients = options.objective.active
    if type(solver).check is Solver.check and options.memory_budget_bytes is None and not gradients:
        return None
    weight = layer.matrix().detach()
    if weight.is_meta or (gradients and options.memory_budget_bytes is None):  # as few rows as share a count
        rows = polytope.rows_per_block(layer.shape)
        weight = torch.zeros(rows, layer.shape[1]) if weight.is_meta else weight[:rows]  # checks may ask for values
    gram = Gram(torch.zeros(layer.shape[1], layer.shape[1], device=weight.device))
    try:
        objective = made_up(options.objective, weight, gram).objective(gram)
        if gradients:  # rows that share a count may not have what the objective gives each
            MaskProblem(weight, objective, polytope)
        problem = MaskProblem(weight, objective, polytope.chosen_from() or polytope)  # what the solver will see
        for one in (solver, options.polisher(solver) if gradients else None):
            if one is not None:
                check_coupling(one, problem)
                one.check(problem)
        options.check_memory(problem, solver)
    except RelaxPruneError as error:
        return str(error)
    return None
