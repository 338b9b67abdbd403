"""Command options in groups: each group is a frozen dataclass, so that no command takes twenty arguments.

Typer reads a command's options from its signature. ``with_groups`` gives it a signature in which every dataclass
argument is replaced by that dataclass's fields, and builds the dataclasses again when the command is called.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .endings import bad_input

if TYPE_CHECKING:
    from relaxprune.options.allocation import Allocation
    from relaxprune.options.prune_options import Target
    from relaxprune.options.solve_options import SolveOptions
    from relaxprune.options.statistics_options import StatisticsOptions

    from .output import Output


def with_groups(command: Callable[..., int | None]) -> Callable[..., None]:
    """Let Typer see the fields of a command's dataclass arguments as options.

    A value that the command returns becomes the exit code.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in inspect.signature(command).parameters if is_dataclass(hints[name])}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            group_hints = get_type_hints(groups[name], include_extras=True)
            parameters += [_parameter(item, group_hints[item.name]) for item in fields(groups[name])]
        else:
            plain = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            parameters.append(plain)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{item.name: values.pop(item.name) for item in fields(group)})
        code = command(**values)
        if code:
            raise typer.Exit(code)

    run.__dict__.update(__signature__=inspect.Signature(parameters))
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(item: Field[Any], hint: Any) -> inspect.Parameter:
    """Return a dataclass field as a keyword argument."""
    default = item.default if item.default_factory is MISSING else item.default_factory()
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


Seed = Annotated[int, typer.Option(help="Seed of every random choice (calibration windows, solver).")]


@dataclass(frozen=True)
class ModelGroup:
    """How a model is loaded; the token for private models is taken from the environment only."""

    device: Annotated[str | None, typer.Option(help="Device to work on, such as cpu or cuda:0.")] = None
    dtype: Annotated[str, typer.Option(help="Dtype to compute in; the saved model keeps its own.")] = "auto"
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None
    cache_dir: Annotated[Path | None, typer.Option(help="Folder for downloaded models.")] = None
    attn_implementation: Annotated[str | None, typer.Option(help="Attention kernel, as transformers names it.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model (off).")
    ] = False


@dataclass(frozen=True)
class PatternGroup:
    """How much is pruned."""

    sparsity: Annotated[
        str | None, typer.Option(metavar="FRACTION", help="Fraction pruned in every row, such as 0.5 or 50%.")
    ] = None
    pattern: Annotated[str | None, typer.Option(help="KEEP n of every m consecutive columns, such as 2:4.")] = None

    @property
    def target(self) -> Target:
        """What is asked for, checked.

        Raises:
            RelaxPruneError: both or neither of the two options, or a value that makes no sense.
        """
        from relaxprune.options.prune_options import Target

        if (self.sparsity is None) == (self.pattern is None):
            given = "neither" if self.sparsity is None else "both"
            raise bad_input(f"give either --sparsity or --pattern, got {given}")
        return Target(None if self.sparsity is None else _fraction(self.sparsity), self.pattern)


def _fraction(text: str) -> float:
    """Return the fraction that a text gives, as such or in per cent."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if 0 < value < 1:
        return value
    hint = f"; for {number} per cent give {float(number) / 100:g}" if not percent and 1 < value < 100 else ""
    raise bad_input(f"--sparsity is the fraction that is pruned, above 0 and below 1, got {text!r}{hint}")


@dataclass(frozen=True)
class AllocationGroup:
    """How a sparsity is shared among the layers of a model."""

    allocation: Annotated[str, typer.Option(help="Who bears the sparsity: uniform, layer, owl or model.")] = "uniform"
    max_sparsity: Annotated[
        float | None, typer.Option(help="Most that any layer is pruned by --allocation model; else sparsity + 0.05.")
    ] = None

    @property
    def value(self) -> Allocation:
        """What is asked for, checked."""
        from relaxprune.options.allocation import Allocation

        return Allocation(self.allocation, self.max_sparsity)


@dataclass(frozen=True)
class BudgetGroup:
    """What is asked of a solver, whichever it is; fields are named as in ``SolveOptions``."""

    start: Annotated[str, typer.Option(help="Starting mask: auto (wanda), wanda, ria, magnitude or none.")] = "auto"
    polish: Annotated[str, typer.Option(help="Search that ends a mask: swap, obs-swap, none, or auto (by solver).")] = (
        "auto"
    )
    max_iterations: Annotated[int | None, typer.Option(help="Iterations per layer, all phases together.")] = None
    gap_tolerance: Annotated[float | None, typer.Option(help="Relative gap that ends the convex phase.")] = None
    time_limit_s: Annotated[float | None, typer.Option("--time-limit", help="Seconds per layer.")] = None

    def options(self, seed: int) -> SolveOptions:
        """Return what is asked, checked."""
        from relaxprune.options.solve_options import SolveOptions

        asked = {item.name: getattr(self, item.name) for item in fields(BudgetGroup)}
        # "none" is how a command line says None.
        return SolveOptions(seed=seed, **{name: None if value == "none" else value for name, value in asked.items()})


@dataclass(frozen=True)
class SolverGroup(BudgetGroup):
    """Which solver finds the masks, and how long it may take."""

    solver: Annotated[
        str | None, typer.Option(help="Solver; `relaxprune solvers` lists them. fw by default; --refit: reconstruct.")
    ] = None
    effort: Annotated[
        str | None, typer.Option(help="How long fw looks: fast, default or best; short for --option effort=…")
    ] = None
    option: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="A solver's own option; may be repeated.")] = (
        field(default_factory=list)
    )

    def named(self, moves: bool = False) -> str:
        """Return the solver's name; ``moves`` says whether weights may move."""
        from relaxprune.options.solve_options import default_solver

        return default_solver(moves) if self.solver is None else self.solver

    @property
    def words(self) -> list[str]:
        """The solver's own options, ``--effort`` included, as KEY=VALUE."""
        return [*self.option, *([] if self.effort is None else [f"effort={self.effort}"])]


@dataclass(frozen=True)
class CalibrationGroup:
    """The text on which a layer's error is measured while its mask is chosen."""

    calibration: Annotated[
        str, typer.Option(metavar="SOURCE", help="builtin, self (sampled), a corpus such as c4, or a text file.")
    ] = "builtin"
    windows: Annotated[int, typer.Option(help="Number of calibration windows.")] = 64
    length: Annotated[int, typer.Option(help="Tokens per window, at least 2.")] = 512


@dataclass(frozen=True)
class TextGroup:
    """The held-out text of a perplexity; None where it is not given."""

    text: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="builtin (default), a corpus such as c4, or a text file.")
    ] = None
    windows: Annotated[int | None, typer.Option(help="Number of windows; 20 by default.")] = None
    length: Annotated[int | None, typer.Option(help="Tokens per window, at least 2; 512 by default.")] = None
    record: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run folder to keep it in; MODEL itself if it is one."),
    ] = None


@dataclass(frozen=True)
class TaskGroup:
    """Tasks of lm-eval instead of a perplexity; None where it is not given."""

    tasks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Tasks of lm-eval with commas between, such as boolq,arc_easy.")
    ] = None
    task_path: Annotated[Path | None, typer.Option(help="Folder of your own task files; needs no network.")] = None
    limit: Annotated[int | None, typer.Option(help="Only the first examples of every task, to try it out.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Requests of tasks per forward pass; 1 by default.")] = None
    out: Annotated[Path | None, typer.Option(help="File for the tasks' scores and versions, as JSON.")] = None

    @property
    def names(self) -> list[str]:
        """The tasks' names."""
        return [name.strip() for name in (self.tasks or "").split(",") if name.strip()]


@dataclass(frozen=True)
class StatisticsGroup:
    """What a layer's objective is made of."""

    statistics: Annotated[
        str,
        typer.Option(help="Gather inputs once per block, or again for each group of layers in it: groups."),
    ] = "block"
    skip_tokens: Annotated[int, typer.Option(help="First tokens of every window that do not count.")] = 0
    token_cap: Annotated[
        float | None, typer.Option(help="Most that a token's squared norm counts, in medians; no cap if not given.")
    ] = None
    shrinkage: Annotated[
        str, typer.Option(help="Share by which Grams shrink to their diagonals, 0 to 1; auto estimates it for each.")
    ] = "0"

    @property
    def options(self) -> StatisticsOptions:
        """What was asked for, checked.

        Raises:
            RelaxPruneError: naming the option.
        """
        from relaxprune.options.statistics_options import StatisticsOptions

        try:
            share: float | str = float(self.shrinkage)
        except ValueError:
            share = self.shrinkage
        return StatisticsOptions(self.statistics, self.skip_tokens, self.token_cap, share)


@dataclass(frozen=True)
class LayerGroup:
    """Which layers are pruned."""

    include: Annotated[
        list[str], typer.Option(metavar="PATTERN", help="Prune only layers whose name matches; may be repeated.")
    ] = field(default_factory=list)
    exclude: Annotated[
        list[str], typer.Option(metavar="PATTERN", help="Leave alone layers whose name matches; may be repeated.")
    ] = field(default_factory=list)
    permute: Annotated[
        bool, typer.Option("--permute", help="Reorder channels inside the blocks so that an N:M mask keeps more.")
    ] = False
    refit: Annotated[
        bool, typer.Option("--refit", help="Give kept weights new values, the least-squares ones on the mask.")
    ] = False
    damping: Annotated[
        float | None, typer.Option(help="With --refit: what moving a weight costs, of the Gram's mean diagonal; 0.03.")
    ] = None
    correct: Annotated[
        float, typer.Option(help="With --refit: share of the errors of earlier layers to correct, 0 to 1.")
    ] = 0.0
    tune: Annotated[
        int, typer.Option(min=0, help="With --refit: passes over the text to tune each block as a whole, at most.")
    ] = 0


@dataclass(frozen=True)
class CertifyGroup:
    """What is proven of every layer."""

    certify: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Certificate of every layer: fw, diagonal or sdp.")
    ] = None
    certify_rows: Annotated[
        int | None, typer.Option(help="Rows per layer that diagonal (default: all) or sdp (default: 32) is applied to.")
    ] = None


@dataclass(frozen=True)
class RunGroup:
    """Where the result goes, and how the run is made."""

    out: Annotated[Path | None, typer.Option(help="Output folder, new or empty.")] = None
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be pruned and stop.")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in the output folder.")] = False
    seed: Seed = 0
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that torch uses.")] = None
    json: Annotated[bool, typer.Option("--json", help="Events for machines: one JSON object per line.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result only.")] = False

    @property
    def output(self) -> Output:
        """What the command says while it works."""
        from .output import Output

        return Output(self.json, self.quiet)
