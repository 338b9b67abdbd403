"""A command that a launcher has started several times: one of them speaks, and all end for the same reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from relaxprune.ranks import ALONE, RankError, Ranks, joined
from relaxprune.text import TokenWindows

from ..endings import EXIT_BAD_INPUT
from ..interrupts import begin_to_end, forget

if TYPE_CHECKING:
    from collections.abc import Callable


@contextmanager
def together() -> Iterator[Ranks]:
    """Share the command that runs inside with the processes beside this one.

    Yields:
        The ranks.

    Raises:
        typer.Exit: another rank says why all end.
    """
    ranks = ALONE
    try:
        with joined() as ranks:
            yield ranks
    except BaseException as error:
        if ranks.silent:
            begin_to_end()
            raise typer.Exit(EXIT_BAD_INPUT) from None
        if isinstance(error, RankError):
            forget()  # a launcher that interrupts this rank does so for the one that has failed
        raise


def shared_windows(ranks: Ranks, make: Callable[[], TokenWindows]) -> TokenWindows:
    """Return the calibration windows that the leader makes: what a model writes differs from processor to processor."""
    if ranks.alone:
        return make()
    facts = ranks.from_leader(lambda: asdict(make()))
    return TokenWindows(**{**facts, "kinds": tuple(facts["kinds"])})
