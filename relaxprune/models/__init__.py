"""Models: how they are loaded, which of their weights can be pruned, and how they are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .layers import PrunableLayer as PrunableLayer
    from .layers import SkippedLayer as SkippedLayer
    from .layers import apply_masks as apply_masks
    from .loading import LoadedModel as LoadedModel
    from .loading import LoadOptions as LoadOptions
    from .loading import load_model as load_model
    from .loading import load_tokenizer as load_tokenizer
    from .rotated_blocks import load_rotated as load_rotated
    from .stored_dtypes import FLOAT_DTYPES as FLOAT_DTYPES
    from .travelling import CannotTravel as CannotTravel

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CannotTravel": ".travelling",
        "FLOAT_DTYPES": ".stored_dtypes",
        "LoadOptions": ".loading",
        "LoadedModel": ".loading",
        "PrunableLayer": ".layers",
        "SkippedLayer": ".layers",
        "apply_masks": ".layers",
        "load_model": ".loading",
        "load_rotated": ".rotated_blocks",
        "load_tokenizer": ".loading",
    },
)
