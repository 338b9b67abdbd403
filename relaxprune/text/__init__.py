"""Text as windows of tokens, for calibration and for evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .mixture import SourcePart as SourcePart
    from .mixture import source_parts as source_parts
    from .token_windows import TokenWindows as TokenWindows
    from .windows import CalibrationOptions as CalibrationOptions
    from .windows import calibration_windows as calibration_windows
    from .windows import evaluation_windows as evaluation_windows
    from .windows import open_source as open_source

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CalibrationOptions": ".windows",
        "SourcePart": ".mixture",
        "TokenWindows": ".token_windows",
        "calibration_windows": ".windows",
        "evaluation_windows": ".windows",
        "open_source": ".windows",
        "source_parts": ".mixture",
    },
)
