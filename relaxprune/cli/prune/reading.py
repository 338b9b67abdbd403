"""What ``relaxprune prune`` would do, read from the words of the command without running it."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from ..option_groups import with_groups
from .job import PruneJob, resolve
from .words import PruneWords


def read_job(words: Sequence[str]) -> PruneJob:
    """Return the job that the words after ``relaxprune prune`` describe.

    Raises:
        RelaxPruneError: for everything that can be refused without the model, naming the option.
    """
    found: list[PruneJob] = []
    app = typer.Typer()

    @app.command()
    @with_groups
    def prune(model: str, words: PruneWords) -> None:
        found.append(resolve(model, words))

    app(list(words), standalone_mode=False)
    return found[0]
