"""Processes that share one run: who they are, what they tell each other, and how one that dies ends the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .joining import joined as joined
    from .ranks import ALONE as ALONE
    from .ranks import RankError as RankError
    from .ranks import Ranks as Ranks

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ALONE": ".ranks",
        "RankError": ".ranks",
        "Ranks": ".ranks",
        "joined": ".joining",
    },
)
