"""Pruning a whole model: the plan, the run, and its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from relaxprune.costs.planned_layer import PlannedLayer as PlannedLayer

    from .channels.permutation import Permutation as Permutation
    from .channels.reorder import apply_permutations as apply_permutations
    from .layer_certificates import solver_for as solver_for
    from .layer_report import LayerReport as LayerReport
    from .pipeline import prune_model as prune_model
    from .plan import Plan as Plan
    from .planner import make_plan as make_plan
    from .planner import plan_model as plan_model
    from .planner import with_prediction as with_prediction
    from .prune_report import PruneEvent as PruneEvent
    from .prune_report import PruneReport as PruneReport
    from .request import PruneRequest as PruneRequest

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "LayerReport": ".layer_report",
        "Permutation": ".channels.permutation",
        "Plan": ".plan",
        "PlannedLayer": "relaxprune.costs.planned_layer",
        "PruneEvent": ".prune_report",
        "PruneReport": ".prune_report",
        "PruneRequest": ".request",
        "apply_permutations": ".channels.reorder",
        "make_plan": ".planner",
        "plan_model": ".planner",
        "prune_model": ".pipeline",
        "solver_for": ".layer_certificates",
        "with_prediction": ".planner",
    },
)
