"""The command line; ``main`` runs it. The installed ``relaxprune`` command comes here from ``relaxprune.__main__``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .app import main as main

__getattr__, __dir__, __all__ = lazy(__name__, {"main": ".app"})
