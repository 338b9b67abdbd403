"""What a user asks for, checked when it is created."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .allocation import Allocation as Allocation
    from .objective_options import ObjectiveOptions as ObjectiveOptions
    from .prune_options import PruneOptions as PruneOptions
    from .recipes import recipe as recipe
    from .solve_options import SolveOptions as SolveOptions
    from .solve_options import default_solver as default_solver
    from .statistics_options import StatisticsOptions as StatisticsOptions
    from .target import Decided as Decided
    from .target import Target as Target

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Allocation": ".allocation",
        "Decided": ".target",
        "ObjectiveOptions": ".objective_options",
        "PruneOptions": ".prune_options",
        "SolveOptions": ".solve_options",
        "StatisticsOptions": ".statistics_options",
        "Target": ".target",
        "default_solver": ".solve_options",
        "recipe": ".recipes",
    },
)
