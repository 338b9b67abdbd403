"""How fast a converted model is on the device at hand, beside the dense one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .measuring import Speed as Speed
    from .measuring import measure_speed as measure_speed
    from .options import SpeedOptions as SpeedOptions

__getattr__, __dir__, __all__ = lazy(
    __name__, {"Speed": ".measuring", "SpeedOptions": ".options", "measure_speed": ".measuring"}
)
