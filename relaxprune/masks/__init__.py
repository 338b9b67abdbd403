"""Properties of masks, independent of the model that they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .applying import apply_package as apply_package
    from .difference import compare_masks as compare_masks
    from .mask_statistics import describe as describe
    from .package import MaskPackage as MaskPackage
    from .package import export_package as export_package
    from .package import read_package as read_package
    from .semi_structured import BACKENDS as BACKENDS
    from .semi_structured import check_folder as check_folder

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "BACKENDS": ".semi_structured",
        "MaskPackage": ".package",
        "apply_package": ".applying",
        "check_folder": ".semi_structured",
        "compare_masks": ".difference",
        "describe": ".mask_statistics",
        "export_package": ".package",
        "read_package": ".package",
    },
)
