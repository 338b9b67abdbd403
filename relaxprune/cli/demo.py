"""``relaxprune demo``: dense, Wanda and relaxprune side by side on a small model, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import bad_input, ending
from .option_groups import with_groups

if TYPE_CHECKING:
    from .demo_settings import Extent


@dataclass(frozen=True)
class ExtentGroup:
    """How much is done; None for what the demo does by itself."""

    full: Annotated[
        bool,
        typer.Option("--full", help="All blocks, 50 % and 2:4, more text: four runs, about 15 minutes on two cores."),
    ] = False
    blocks: Annotated[int | None, typer.Option(min=1, help="Only the first so many blocks.")] = None
    effort: Annotated[str | None, typer.Option(help="How long to look for masks: fast, default or best.")] = None
    max_iterations: Annotated[int | None, typer.Option(help="Frank-Wolfe iterations per layer.")] = None
    windows: Annotated[int | None, typer.Option(help="Calibration windows.")] = None
    held_out: Annotated[int | None, typer.Option(help="Held-out windows.")] = None
    length: Annotated[int | None, typer.Option(help="Tokens per window, at least 2.")] = None

    @property
    def extent(self) -> Extent:
        """What is done: the demo's own extent, with what was given in the place of its values."""
        from dataclasses import replace

        from .demo_settings import FULL, SHORT

        given = {name: value for name, value in vars(self).items() if name != "full" and value is not None}
        if self.effort is not None and self.max_iterations is None:
            given["max_iterations"] = None  # an effort has its own
        return replace(FULL if self.full else SHORT, **given)


@with_groups
def demo(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What to prune.")] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option(help="Folder for the 50 % model; runs/demo-TIME if not given.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted demo in --out, or the last one in runs.")
    ] = False,
    *,
    extent: ExtentGroup,
) -> int:
    """Prune a small model to 50 % with relaxprune's masks and with Wanda's, and print one table."""
    from .demo_run import left_behind, run_demo
    from .demo_settings import DemoSettings

    folder = out or (_last_demo() if resume else Path("runs") / datetime.now().strftime("demo-%Y%m%d-%H%M%S"))
    settings = DemoSettings(model=model, out=folder, resume=resume, extent=extent.extent)
    with ending(lambda: left_behind(folder)):
        return run_demo(settings)


def _last_demo() -> Path:
    """Return the folder of the last demo that was not done."""
    from .demo_settings import PARTS

    found = sorted(Path("runs").glob(f"demo-*{PARTS}"))
    if not found:
        raise bad_input("no demo in 'runs' was interrupted: name its folder with --out")
    return found[-1].with_name(found[-1].name.removesuffix(PARTS))
