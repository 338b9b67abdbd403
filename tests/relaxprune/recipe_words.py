"""What ``relaxprune prune`` makes of its words, without running it."""

from __future__ import annotations

from relaxprune.cli.prune.job import PruneJob
from relaxprune.cli.prune.reading import read_job


def job_of(*words: str) -> PruneJob:
    """Return the job that words of the command describe."""
    return read_job(["model", *words])
