"""The one exception for input that cannot be right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RelaxPruneError(ValueError):
    """Bad input, in one sentence that names the argument, what it got and what would be right."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or ``""`` when none is close."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
