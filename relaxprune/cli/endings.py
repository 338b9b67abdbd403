"""How a command ends: its exit code, and what it says on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from relaxprune import RelaxPruneError

EXIT_BAD_INPUT = 2
EXIT_NOTICE = 3
EXIT_INTERRUPTED = 130


def say(text: str) -> None:
    """Print one line to stderr."""
    print(f"relaxprune: {text}", file=sys.stderr)


def tell(notices: Iterable[str]) -> int:
    """Print every notice to stderr and return the exit code: 3, or 0 without notices."""
    code = 0
    for notice in notices:
        say(notice)
        code = EXIT_NOTICE
    return code


def bad_input(sentence: str) -> RelaxPruneError:
    """Return the exception for bad input; importing it loads torch, which only errors may wait for."""
    from relaxprune import RelaxPruneError

    return RelaxPruneError(sentence)


@contextmanager
def interruptible(left: Callable[[], str] = lambda: "nothing is written") -> Iterator[None]:
    """End the command with exit code 130 when the user interrupts it.

    Args:
        left: says what the interrupted command leaves behind, as a clause.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; {left()}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def door() -> Iterator[None]:
    """Turn an operating system's error into bad input; only around code that opens something the user named."""
    try:
        yield
    except OSError as error:
        raise bad_input(str(error) or type(error).__name__) from error
