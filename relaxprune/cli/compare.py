"""``relaxprune compare``: one layer, many solvers, one table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import command_line, ending, tell, written
from .option_groups import BudgetGroup, PatternGroup, Seed, with_groups

if TYPE_CHECKING:
    from relaxprune.solving import Comparison, ComparisonRow


@dataclass(frozen=True)
class CompareGroup(BudgetGroup):
    """Which solvers are compared, and what each of them is asked."""

    solvers: Annotated[str, typer.Option(help="all, or names with commas between them.")] = "all"
    seed: Seed = 0

    @property
    def names(self) -> list[str] | None:
        """The solvers named, None for all."""
        return None if self.solvers == "all" else [name.strip() for name in self.solvers.split(",") if name.strip()]


@with_groups
def compare_solvers(
    file: Annotated[Path, typer.Argument(help="safetensors with `weight` (rows, cols) and `gram` (cols, cols).")],
    how_much: PatternGroup,
    how: CompareGroup,
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json and the plot; new or empty.")] = None,
    plot: Annotated[bool, typer.Option(help="Plot gap against time; costs each solver about one more solve.")] = True,
    device: Annotated[str | None, typer.Option(help="Device to work on, such as cpu or cuda:0.")] = None,
) -> int:
    """Solve one layer by several solvers: objective, bound, gap, status and cost in one table."""
    from relaxprune.solving import ComparisonOptions, compare, require_matplotlib
    from relaxprune.support import refuse_output_folder

    from .solve import read_problem

    target = how_much.target_for(file)
    draw = plot and out is not None
    if draw:
        require_matplotlib()
    if out is not None:
        refuse_output_folder(out)
    options = ComparisonOptions(**vars(how.options(how.seed)), curves=draw)
    problem = read_problem(file, target, device)
    comparison = compare(problem, how.names, options=options, on_row=_show if sys.stderr.isatty() else None)
    print(comparison)
    if out is not None:
        with ending(lambda: written(out / "comparison.json")):
            _write(comparison, out, draw)
    return _exit_code(comparison, named=how.names is not None)


def _show(row: ComparisonRow) -> None:
    """Print that a solver is done, for a waiting user."""
    print(f"{row.solver}: {row.status}", file=sys.stderr)


def _write(comparison: Comparison, out: Path, draw: bool) -> None:
    """Write the JSON, and the plot if there is anything to draw."""
    from relaxprune import __version__
    from relaxprune.solving import plot_comparison
    from relaxprune.support import write_bytes, write_json

    out.mkdir(parents=True, exist_ok=True)
    head = {"relaxprune": __version__, "command": command_line()}
    write_json(out / "comparison.json", {**head, **comparison.to_dict()})
    if draw and comparison.best_objective is not None:
        write_bytes(out / "gap.png", plot_comparison(comparison))
    print(f"written to {out}")


def _exit_code(comparison: Comparison, named: bool) -> int:
    """Return 3, and say why, if a solver broke down, or one that was named refused the problem."""
    from relaxprune.solving import REFUSED

    return tell(
        f"{row.solver} ended as {row.status}: {row.message}"
        for row in comparison.rows
        if row.failed or (named and row.status == REFUSED)
    )
