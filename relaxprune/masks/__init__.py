"""Properties of masks, independent of the model that they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .difference import compare_masks as compare_masks
    from .mask_statistics import describe as describe
    from .semi_structured import BACKENDS as BACKENDS
    from .semi_structured import check_folder as check_folder

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "BACKENDS": ".semi_structured",
        "check_folder": ".semi_structured",
        "compare_masks": ".difference",
        "describe": ".mask_statistics",
    },
)
