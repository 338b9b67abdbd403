"""Solving one layer: ``solve``, ``refit`` and ``compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .comparison import REFUSED as REFUSED
    from .comparison import Comparison as Comparison
    from .comparison import ComparisonOptions as ComparisonOptions
    from .comparison import ComparisonRow as ComparisonRow
    from .comparison import compare as compare
    from .comparison_plot import plot_comparison as plot_comparison
    from .comparison_plot import require_matplotlib as require_matplotlib
    from .refitting import Refit as Refit
    from .refitting import refit as refit
    from .solution import Solution as Solution
    from .solution import Status as Status
    from .solving import available_solvers as available_solvers
    from .solving import solve as solve

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Comparison": ".comparison",
        "ComparisonOptions": ".comparison",
        "ComparisonRow": ".comparison",
        "REFUSED": ".comparison",
        "Refit": ".refitting",
        "Solution": ".solution",
        "Status": ".solution",
        "available_solvers": ".solving",
        "compare": ".comparison",
        "plot_comparison": ".comparison_plot",
        "refit": ".refitting",
        "require_matplotlib": ".comparison_plot",
        "solve": ".solving",
    },
)
