"""The command line; ``main`` is what the installed ``relaxprune`` command runs."""

from __future__ import annotations

from .app import main as main
