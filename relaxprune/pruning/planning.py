"""What a pruning run will do and take, said before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from relaxprune.inputs.batches import read_batches
from relaxprune.options.allocation import Allocation
from relaxprune.options.prune_options import PruneOptions, Target
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes import Polytope
from relaxprune.solvers import Solver

from .plan import PrunePlan, Survey, survey_model
from .prediction import Trial, predict


def plan_model(
    model: nn.Module,
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    polytope: Polytope | None = None,
    options: PruneOptions | None = None,
    allocation: str | Allocation = "uniform",
    tokens: int = 0,
    solver: Solver | None = None,
    batches: Iterable[Any] | None = None,
) -> PrunePlan:
    """Say what ``prune_model`` would do; without batches nothing runs.

    Args:
        model: any module.
        sparsity: fraction to prune in every row. Give exactly one of this, ``pattern`` and ``polytope``.
        pattern: "N:M", keep N of every M consecutive columns.
        polytope: one feasible set for all layers.
        options: which layers, and how much memory the solver may take.
        allocation: how the sparsity is shared, as for ``prune_model``; a pass that decides it is in no prediction.
        tokens: number of calibration tokens, for the memory estimate.
        solver: what will find the masks, to be asked whether it takes every layer; None to ask nothing.
        batches: the calibration batches as ``prune_model`` takes them, to try a window, the products and a few
            iterations for a few seconds, and predict time and peak memory; needs a solver.

    Raises:
        RelaxPruneError: a model that cannot be pruned, a target that does not fit a layer, a pattern that matches
            nothing, nothing left to prune, a solver that cannot take a layer, or batches without a solver.
    """
    target = Target(sparsity, pattern, polytope, Allocation.of(allocation))
    options = options or PruneOptions()
    survey = survey_model(model, target, options, tokens, solver)
    if batches is None:
        return survey.plan
    if solver is None:
        raise RelaxPruneError("solver must be given with batches: the time of a run is mostly the solver's")
    return with_prediction(model, survey, Trial(target, solver, options), batches)


def with_prediction(model: nn.Module, survey: Survey, trial: Trial, batches: Iterable[Any]) -> PrunePlan:
    """Return a survey's plan with what the run is expected to take; the model runs on a window for it."""
    return replace(survey.plan, prediction=predict(model, survey, read_batches(batches), trial))
