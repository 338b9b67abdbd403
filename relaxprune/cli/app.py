"""The ``relaxprune`` command: its subcommands, its exit codes, and how errors read.

Exit codes: 0 success; 1 an error inside relaxprune (with its traceback: please report it); 2 bad input, or something
that the system refuses, told in one sentence on stderr; 3 finished, with something the user must see (each is told on
stderr and kept in the result); 130 interrupted, or 128 and the number of another signal. Only a ``RelaxPruneError`` is
bad input, and only an error of the system (see ``refusals``) a refusal: any other exception is an error inside.

Nothing here imports torch; each command does when it is called, so help and version are instant.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

import relaxprune

from .advise import advise_model
from .apply import apply_masks
from .compare import compare_solvers
from .demo import demo
from .endings import ending
from .eval import evaluate
from .interrupts import interruptible
from .masks import masks_app
from .plan import plan_run
from .prune.command import prune
from .report import report
from .rotate import rotate
from .solve import solve_layers
from .solvers import solvers
from .speed import speed
from .verify import verify_file


class _Commands(TyperGroup):
    """The commands; whichever runs ends in one of the ways of ``ending``."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with interruptible(), ending():
            return super().invoke(ctx)


app = typer.Typer(
    name="relaxprune",
    cls=_Commands,
    help="Choose which weights of a language model to keep, with a proven bound on every layer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 success; 1 an error inside relaxprune; 2 bad input, or the system refuses; 3 finished, with "
    "something you must see; 130 interrupted.",
)
app.command("advise")(advise_model)
app.command("prune")(prune)
app.command("rotate")(rotate)
app.command("plan")(plan_run)
app.command("eval")(evaluate)
app.command("apply")(apply_masks)
app.command("report")(report)
app.command("solve")(solve_layers)
app.command("verify")(verify_file)
app.command("compare")(compare_solvers)
app.command("solvers")(solvers)
app.command("speed")(speed)
app.command("demo")(demo)
app.add_typer(masks_app)


def _version(asked: bool) -> None:
    """Print the version and stop, if asked to."""
    if asked:
        print(f"relaxprune {relaxprune.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the log of what happens inside.")] = False,
) -> None:
    """Choose which weights of a language model to keep, with a proven bound on every layer."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
    logging.getLogger("relaxprune").setLevel(logging.INFO if verbose else logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the command's name; ``sys.argv[1:]`` if None.

    Returns:
        The exit code (see the module's docstring). Set ``RELAXPRUNE_TRACEBACK=1`` to see where bad input was found.
    """
    # Tokenizers warn about their threads when a data loader forks; only a program may decide that, not a library.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Where one of several processes dies, relaxprune says so, not every layer below.
    if os.environ.keys() & {"RANK", "SLURM_STEP_NUM_TASKS"}:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.stderr.isatty():  # Bars of the libraries below are for people: a log file gets our lines only.
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        app(list(sys.argv[1:] if arguments is None else arguments), prog_name="relaxprune")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
