"""Sentences about files, and what another library says of an error in few enough words for one of them."""

from __future__ import annotations

from relaxprune.problems.errors import RelaxPruneError

_MOST_LETTERS = 300


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop, or the name of its class if it has no text.

    A first line that ends with a colon has the second one behind it.
    """
    # One of a decoder's arguments is everything that it was to decode.
    text = str(error) if isinstance(error, UnicodeError) else " ".join(str(arg) for arg in error.args)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said.rstrip(".")[:_MOST_LETTERS]


def damaged(what: str, reason: str, advice: str = "") -> RelaxPruneError:
    """Return the error that says that a file is damaged.

    Args:
        what: names the file.
        reason: a clause.
        advice: what to do about it.
    """
    return RelaxPruneError(f"{what} is damaged: {reason}{f'; {advice}' if advice else ''}")
