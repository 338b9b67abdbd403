"""Error sentences about files, and errors of other libraries cut short enough to be part of one."""

from __future__ import annotations

from collections.abc import Iterable

from relaxprune.problems.errors import RelaxPruneError

_MOST_LETTERS = 300


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop, or the name of its class if it has no text.

    If the first line ends with a colon, the second line follows it.
    """
    # A decoder's error has its whole input among its arguments.
    text = str(error) if isinstance(error, UnicodeError) else " ".join(str(arg) for arg in error.args)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said.rstrip(".")[:_MOST_LETTERS]


def some(names: Iterable[object], limit: int = 5) -> str:
    """Name the first few, sorted, and how many there are besides."""
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:limit]) + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")


def damaged(what: str, reason: str, advice: str = "") -> RelaxPruneError:
    """Return the error for a damaged file.

    Args:
        what: the file's name in error messages.
        reason: a clause.
        advice: what to do about it.
    """
    return RelaxPruneError(f"{what} is damaged: {reason}{f'; {advice}' if advice else ''}")
