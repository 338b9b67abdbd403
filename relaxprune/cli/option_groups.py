"""Command options in groups: each group is a frozen dataclass, so that no command takes twenty arguments.

Typer reads a command's options from its signature. ``with_groups`` gives it a signature in which every dataclass
argument is replaced by that dataclass's fields, and builds the dataclasses again when the command is called.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .endings import bad_input, door

if TYPE_CHECKING:
    from relaxprune.options import SolveOptions, Target


def with_groups(command: Callable[..., int | None]) -> Callable[..., None]:
    """Let Typer see the fields of a command's dataclass arguments as options.

    A value that the command returns becomes the exit code.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in inspect.signature(command).parameters if is_dataclass(hints[name])}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            plain = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            parameters.append(plain)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = _built(group, values)
        code = command(**values)
        if code:
            raise typer.Exit(code)

    run.__dict__.update(__signature__=inspect.Signature(parameters))
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(group: type) -> Iterator[inspect.Parameter]:
    """Yield the fields of a group as keyword arguments; a field that is a group itself gives its own fields."""
    hints = get_type_hints(group, include_extras=True)
    for item in fields(group):
        if is_dataclass(hints[item.name]):
            yield from _parameters(hints[item.name])
        else:
            yield _parameter(item, hints[item.name])


def _built(group: Any, values: dict[str, Any]) -> Any:
    """Build a group, and the groups in it, from values by their fields' names; they are taken out of ``values``."""
    hints = get_type_hints(group, include_extras=True)
    inner = {item.name: hints[item.name] for item in fields(group)}
    return group(
        **{name: _built(kind, values) if is_dataclass(kind) else values.pop(name) for name, kind in inner.items()}
    )


def _parameter(item: Field[Any], hint: Any) -> inspect.Parameter:
    """Return a dataclass field as a keyword argument."""
    default = item.default if item.default_factory is MISSING else item.default_factory()
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def weights_word(refit: bool | None) -> str | None:
    """Return what ``--refit`` or ``--no-refit`` asks for, as in ``PruneOptions.weights``; None for neither."""
    return None if refit is None else "refit" if refit else "keep"


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
class TextGroup:
    """The held-out texts, and what a model is compared with on them; None if not given."""

    text: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE",
            help="builtin (default), python, a text file, c4, wikitext2, or self (with --against); may be repeated.",
        ),
    ] = field(default_factory=list)
    against: Annotated[
        str | None, typer.Option(metavar="DENSE", help="Also the KL divergence from this model, before pruning.")
    ] = None
    versus: Annotated[
        str | None, typer.Option(metavar="OTHER", help="With --against: another pruned model, and which is closer.")
    ] = None
    windows: Annotated[int | None, typer.Option(help="Number of windows of each text; 20 by default.")] = None
    length: Annotated[int | None, typer.Option(help="Tokens per window, at least 2; 512 by default.")] = None
    record: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run folder to keep it in; MODEL itself if it is one."),
    ] = None


@dataclass(frozen=True)
class PatternGroup:
    """How much is pruned."""

    sparsity: Annotated[
        str | None, typer.Option(metavar="FRACTION", help="Fraction pruned in every row, such as 0.5 or 50%.")
    ] = None
    pattern: Annotated[
        str | None,
        typer.Option(
            help="KEEP n of every m consecutive columns, such as 2:4; 2:4,dense=0.25 leaves a quarter of rows dense."
        ),
    ] = None

    @property
    def target(self) -> Target:
        """What is asked for, checked.

        Raises:
            RelaxPruneError: both or neither of the two options, or a value that makes no sense.
        """
        from relaxprune.options import Target

        if (self.sparsity is None) == (self.pattern is None):
            given = "neither" if self.sparsity is None else "both"
            raise bad_input(f"give either --sparsity or --pattern, got {given}")
        return Target(None if self.sparsity is None else _fraction(self.sparsity), self.pattern)

    def target_for(self, file: Path) -> Target:
        """What is asked for of a layer: by the options, or without them by its problem file; raises as ``target``."""
        from relaxprune.options import Target
        from relaxprune.runs.problem_file import stated_polytope

        if self.sparsity is None and self.pattern is None:
            with door():
                polytope = stated_polytope(file)
            if polytope is not None:
                return Target(polytope=polytope)
        return self.target


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
class BudgetGroup:
    """What is asked of any solver; fields are named as in ``SolveOptions``."""

    start: Annotated[str, typer.Option(help="Starting mask: auto (wanda), wanda, ria, magnitude or none.")] = "auto"
    polish: Annotated[str, typer.Option(help="Search that ends a mask: swap, obs-swap, none, or auto (by solver).")] = (
        "auto"
    )
    max_iterations: Annotated[int | None, typer.Option(help="Iterations per layer, all phases together.")] = None
    gap_tolerance: Annotated[float | None, typer.Option(help="Relative gap that ends the convex phase.")] = None
    time_limit_s: Annotated[float | None, typer.Option("--time-limit", help="Seconds per layer.")] = None

    def options(self, seed: int) -> SolveOptions:
        """Return what is asked, checked."""
        from relaxprune.options import SolveOptions

        asked = {item.name: getattr(self, item.name) for item in fields(BudgetGroup)}
        # "none" is how a command line says None.
        return SolveOptions(seed=seed, **{name: None if value == "none" else value for name, value in asked.items()})


def _own_effort(context: typer.Context, effort: str | None) -> str | None:
    """Leave out the effort of a recipe if another solver than the recipe's is given, or an effort in other words."""
    source, taken = context.get_parameter_source("effort"), context.default_map or {}
    foreign = context.params.get("solver", taken.get("solver")) != taken.get("solver")  # given options come first
    said = any(word.startswith("effort=") for word in context.params.get("option") or ())
    return None if source is not None and source.name == "DEFAULT_MAP" and (foreign or said) else effort


@dataclass(frozen=True)
class SolverGroup(BudgetGroup):
    """Which solver finds the masks, and how long it may take."""

    solver: Annotated[
        str | None, typer.Option(help="Solver; `relaxprune solvers` lists them. fw by default; --refit: reconstruct.")
    ] = None
    effort: Annotated[
        str | None,
        typer.Option(callback=_own_effort, help="How long to look: fast, default or best; short for --option effort=…"),
    ] = None
    option: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="A solver's own option; may be repeated.")] = (
        field(default_factory=list)
    )

    def named(self, moves: bool = False) -> str:
        """Return the solver's name; ``moves`` says whether weights may move."""
        from relaxprune.options import default_solver

        return default_solver(moves) if self.solver is None else self.solver

    @property
    def words(self) -> list[str]:
        """The solver's own options, ``--effort`` included, as KEY=VALUE."""
        return [*self.option, *([] if self.effort is None else [f"effort={self.effort}"])]
