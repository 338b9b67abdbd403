"""``relaxprune report``: a run, or several side by side, as one page that a browser shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .endings import door
from .option_groups import with_groups


@with_groups
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders; several are compared.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page, .html; by default report.html in the one folder.")
    ] = None,
) -> None:
    """Write a run's report as one HTML page, without network or script, and its numbers as JSON next to it."""
    from relaxprune import write_report

    with door():
        page = write_report(folders, out)
    print(f"written: {page} and {page.with_suffix('.json').name}")
