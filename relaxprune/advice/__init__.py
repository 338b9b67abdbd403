"""Which pattern pays on which device: published measurements, and what they say of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .advising import Advice as Advice
    from .advising import advise as advise
    from .figures import DEVICES as DEVICES
    from .figures import Figure as Figure
    from .sizes import ModelSizes as ModelSizes
    from .sizes import model_sizes as model_sizes

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Advice": ".advising",
        "DEVICES": ".figures",
        "Figure": ".figures",
        "ModelSizes": ".sizes",
        "advise": ".advising",
        "model_sizes": ".sizes",
    },
)
