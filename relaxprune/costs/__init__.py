"""What a run costs: operations, bytes, memory and seconds, from the shapes of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .machine import Machine as Machine
    from .memory import RunBytes as RunBytes
    from .memory import TokenCounts as TokenCounts
    from .planned_layer import PlannedLayer as PlannedLayer
    from .residency import choose_residency as choose_residency
    from .work import Rates as Rates
    from .work import Work as Work

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Machine": ".machine",
        "PlannedLayer": ".planned_layer",
        "Rates": ".work",
        "RunBytes": ".memory",
        "TokenCounts": ".memory",
        "Work": ".work",
        "choose_residency": ".residency",
    },
)
