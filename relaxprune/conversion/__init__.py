"""From a run's folder to a form that a runtime multiplies with, checked after it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .converting import Conversion as Conversion
    from .converting import convert_run as convert_run
    from .reading import load_converted as load_converted
    from .registry import target_names as target_names

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Conversion": ".converting",
        "convert_run": ".converting",
        "load_converted": ".reading",
        "target_names": ".registry",
    },
)
