"""Packages that import the module of a name only when the name is first used (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(room: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package that loads its names on first use.

    Args:
        room: ``__name__`` of the package.
        homes: name -> the module in the package that defines it.
    """
    names = sorted(homes)

    def load(name: str) -> Any:
        """Load a name from its module."""
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(import_module(homes[name], room), name)

    return load, lambda: names, names
