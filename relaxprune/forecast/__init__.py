"""What a run would take, before anything of its model but the configuration is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .forecasting import TextShape as TextShape
    from .forecasting import forecast_run as forecast_run

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "TextShape": ".forecasting",
        "forecast_run": ".forecasting",
    },
)
