"""The exceptions: input that cannot be right, and a solve that failed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RelaxPruneError(ValueError):
    """Bad input: one sentence that names the argument, what it got and what would be right."""


class SolveError(RelaxPruneError, FloatingPointError):
    """A solver broke down on input that could be right; the sentence is the advice of the ``Status`` it ended with."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or ``""`` when none is close."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
