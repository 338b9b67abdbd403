"""What ``relaxprune prune`` makes of its words, without running it."""

from __future__ import annotations

import typer

from relaxprune.cli.option_groups import with_groups
from relaxprune.cli.prune.job import PruneJob, resolve
from relaxprune.cli.prune.words import PruneWords


def job_of(*words: str) -> PruneJob:
    """Return the job that words of the command describe."""
    found: list[PruneJob] = []
    app = typer.Typer()

    @app.command()
    @with_groups
    def prune(model: str, words: PruneWords) -> None:
        found.append(resolve(model, words))

    app(["model", *words], standalone_mode=False)
    return found[0]
