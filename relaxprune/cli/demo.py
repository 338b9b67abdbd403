"""``relaxprune demo``: dense, Wanda and relaxprune side by side on a small model, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from .endings import bad_input, ending
from .option_groups import with_groups


@dataclass(frozen=True)
class TextSizeGroup:
    """How much text is taken."""

    windows: Annotated[int | None, typer.Option(help="Calibration windows.")] = None
    held_out: Annotated[int, typer.Option(help="Held-out windows.")] = 20
    length: Annotated[int, typer.Option(help="Tokens per window, at least 2.")] = 512


@with_groups
def demo(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What to prune.")] = "smollm2-135m",
    full: Annotated[bool, typer.Option("--full", help="Full effort: about three times as long.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the 50 % model; runs/demo-TIME if not given.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted demo in --out, or the last one in runs.")
    ] = False,
    max_iterations: Annotated[int | None, typer.Option(help="Frank-Wolfe iterations per layer.")] = None,
    *,
    text: TextSizeGroup,
) -> int:
    """Prune a small model with Wanda's masks and with relaxprune's, at 50 % and 2:4, and print one table."""
    from .demo_run import DemoSettings, left_behind, run_demo

    folder = out or (_last_demo() if resume else Path("runs") / datetime.now().strftime("demo-%Y%m%d-%H%M%S"))
    settings = DemoSettings(
        model=model,
        out=folder,
        resume=resume,
        effort="default" if full else "fast",
        max_iterations=max_iterations,
        windows=(24 if full else 16) if text.windows is None else text.windows,
        held_out=text.held_out,
        length=text.length,
    )
    with ending(lambda: left_behind(folder)):
        return run_demo(settings)


def _last_demo() -> Path:
    """Return the folder of the last demo that was not done."""
    from .demo_run import PARTS

    found = sorted(Path("runs").glob(f"demo-*{PARTS}"))
    if not found:
        raise bad_input("no demo in 'runs' was interrupted: name its folder with --out")
    return found[-1].with_name(found[-1].name.removesuffix(PARTS))
