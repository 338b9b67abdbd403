"""How a command ends: its exit code, and what it says on stderr."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .interrupts import begin_to_end, interruption
from .refusals import refusal

if TYPE_CHECKING:
    from relaxprune import RelaxPruneError

EXIT_BAD_INPUT = 2
EXIT_NOTICE = 3
EXIT_SIGNAL = 128  # and the signal's number: 130 for Ctrl-C


def say(text: str) -> None:
    """Print one line to stderr, if that is possible."""
    with suppress(OSError):
        print(f"relaxprune: {text}", file=sys.stderr, flush=True)


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


def command_line() -> str:
    """Return the command as it was typed, as records keep it."""
    return shlex.join(["relaxprune", *sys.argv[1:]])


def written(*files: Path | None) -> str:
    """Say which of a command's new files are there."""
    there = [str(file) for file in files if file is not None and file.exists()]
    return f"written: {', '.join(there)}" if there else "nothing is written"


@contextmanager
def ending(left: Callable[[], str] = lambda: "nothing is written") -> Iterator[None]:
    """End the command in one sentence when it is interrupted, when the system refuses something, and on bad input.

    Every other error passes: it is one inside relaxprune. ``RELAXPRUNE_TRACEBACK=1`` shows where bad input and refusals
    were found.

    Args:
        left: says what a command that could not go on leaves behind, as a clause.

    Raises:
        typer.Exit: with the exit code.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        number = interruption(error)
        code = EXIT_BAD_INPUT if number is None else EXIT_SIGNAL + number
        sentence = _sentence(error, number)
        if sentence is None or (number is None and os.environ.get("RELAXPRUNE_TRACEBACK")):
            raise
        begin_to_end()
        say(sentence if _is_bad_input(error) and number is None else f"{sentence}; {_said(left)}")
        raise typer.Exit(code) from None


def _sentence(error: BaseException, number: int | None) -> str | None:
    """Say why a command ends, None for an error inside."""
    if number is not None:
        import signal

        return "interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}"
    return " ".join(str(error).split()) if _is_bad_input(error) else refusal(error)


def _is_bad_input(error: BaseException) -> bool:
    """Tell whether an error is bad input; its class comes with torch, which only errors may wait for."""
    if not isinstance(error, ValueError):
        return False
    from relaxprune import RelaxPruneError

    return isinstance(error, RelaxPruneError)


def _said(left: Callable[[], str]) -> str:
    """Return what is left behind, as far as the system lets one look."""
    try:
        return left()
    except OSError:
        return "what is kept cannot be read now"


@contextmanager
def door() -> Iterator[None]:
    """Turn an operating system's error into bad input; only around code that opens something the user named."""
    try:
        yield
    except OSError as error:
        raise bad_input(str(error) or type(error).__name__) from error
