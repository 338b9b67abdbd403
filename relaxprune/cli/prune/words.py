"""The words of ``relaxprune prune``, as they are typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..option_groups import ModelGroup, PatternGroup, Seed, SolverGroup
from ..rotation_words import RotationGroup
from .objective_words import ObjectiveGroup

if TYPE_CHECKING:
    from relaxprune.options import Allocation, StatisticsOptions


@dataclass(frozen=True)
class AllocationGroup:
    """How a sparsity is shared among the layers of a model."""

    allocation: Annotated[
        str | None,
        typer.Option(help="Sharing of the sparsity: uniform, layer, owl or model; default: the solver's own way."),
    ] = None
    max_sparsity: Annotated[
        float | None, typer.Option(help="Most that any layer is pruned by --allocation model; else sparsity + 0.05.")
    ] = None

    @property
    def value(self) -> Allocation | None:
        """The allocation, checked; None to leave it to the solver."""
        from relaxprune.options import Allocation

        if self.allocation is None and self.max_sparsity is None:
            return None
        return Allocation(self.allocation or "uniform", self.max_sparsity)


@dataclass(frozen=True)
class CalibrationGroup:
    """The text on which a layer's error is measured while its mask is chosen."""

    calibration: Annotated[
        str,
        typer.Option(
            metavar="SOURCE[:WINDOWS],…",
            help="builtin, python, a text file, c4, wikitext2, or self (sampled); or a mixture: builtin:32,self:32.",
        ),
    ] = "builtin"
    windows: Annotated[
        int, typer.Option(help="Calibration windows of a source without a number; several sources share them evenly.")
    ] = 64
    length: Annotated[int, typer.Option(help="Tokens per window, at least 2.")] = 512
    self_share: Annotated[
        float | None,
        typer.Option(
            help="Windows that the model writes beside those of a single text, as a share of them: 0 for none; "
            "default: a third, half with --refit, none for a published method."
        ),
    ] = None


def _take_recipe(context: typer.Context, name: str | None) -> str | None:
    """Make the words of a recipe the defaults of the other options."""
    if name is not None:
        from relaxprune.options.recipes import RECIPES
        from relaxprune.problems.checks import one_of

        one_of("--recipe", name, tuple(RECIPES))
        context.default_map = {**(context.default_map or {}), **RECIPES[name]}
    return name


@dataclass(frozen=True)
class RecipeGroup:
    """Choices that go together; whatever is given beside it wins."""

    recipe: Annotated[
        str | None,
        typer.Option(callback=_take_recipe, is_eager=True, help="Solver and stages that go together: masks or best."),
    ] = None


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
        bool, typer.Option("--permute", help="Reorder channels inside the blocks so that an N:M mask loses less.")
    ] = False
    permute_by: Annotated[
        str | None,
        typer.Option(
            help="What --permute searches by: saliency (the default), or error, of short solves: several times slower."
        ),
    ] = None
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit",
            help="Give kept weights new values, or leave them; default: the solver's own way.",
        ),
    ] = None
    damping: Annotated[
        float | None,
        typer.Option(help="With --refit: what moving a weight costs, of the Gram's mean diagonal; 0.03, alps: 0.01."),
    ] = None
    correct: Annotated[
        float, typer.Option(help="With --refit: share of the errors of earlier layers to correct, 0 to 1.")
    ] = 0.0
    skip_misfits: Annotated[
        bool, typer.Option("--skip-misfits", help="Leave alone layers that do not fit, and list them.")
    ] = False
    regrow: Annotated[
        bool, typer.Option("--regrow", help="With --refit: new values for the zeros of a sparse source too.")
    ] = False
    tune: Annotated[
        int, typer.Option(min=0, help="Passes over the text to tune each block's kept weights together, at most.")
    ] = 0
    tune_by: Annotated[str, typer.Option(help="What --tune tunes together: block, or part (attention, MLP).")] = "block"
    tune_recipe: Annotated[
        str, typer.Option(help="How far the steps of --tune go: constant, or tm (published; --tune 20).")
    ] = "constant"
    refine: Annotated[
        int,
        typer.Option(min=0, help="Passes over all text to tune all kept weights together at the end, at most."),
    ] = 0
    refine_rate: Annotated[
        float | None, typer.Option(help="With --refine: rate of its steps, of a layer's root mean square; 0.002.")
    ] = None
    refine_samples: Annotated[
        int | None,
        typer.Option(
            min=0, help="With --refine: windows that the model writes for it alone; as many as all others, if it can."
        ),
    ] = None
    reselect: Annotated[
        int,
        typer.Option(min=0, help="Rounds of choosing all masks again for the whole model, before --refine, at most."),
    ] = 0
    reselect_solver: Annotated[
        str, typer.Option(metavar="NAME", help="With --reselect: the solver that chooses them.")
    ] = "swap"


@dataclass(frozen=True)
class CertifyGroup:
    """The certificates of the layers."""

    certify: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Certificate of every layer: fw, diagonal or sdp.")
    ] = None
    certify_rows: Annotated[
        int | None, typer.Option(help="Rows per layer that diagonal (default: all) or sdp (default: 32) is applied to.")
    ] = None


@dataclass(frozen=True)
class StatisticsGroup:
    """The tokens that a layer's objective is made of."""

    statistics: Annotated[
        str,
        typer.Option(help="Gather inputs once per block, or again for each group of layers in it: groups."),
    ] = "block"
    skip_tokens: Annotated[int, typer.Option(help="First tokens of every window that do not count.")] = 0
    token_cap: Annotated[
        float | None, typer.Option(help="Most that a token's squared norm counts, in medians; no cap if not given.")
    ] = None
    shrinkage: Annotated[
        str | None,
        typer.Option(
            help="Share by which Grams shrink to their diagonals, 0 to 1, or auto; 0.2, 0.1 with --refit, 0 for "
            "published methods."
        ),
    ] = None
    select: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE,SHARE,…", help="Choose each Gram's --shrinkage among these, on text that is held out of it."
        ),
    ] = None

    @property
    def options(self) -> StatisticsOptions:
        """The options, checked.

        Raises:
            RelaxPruneError: naming the option.
        """
        from relaxprune.options import StatisticsOptions

        try:
            share: float | str | None = None if self.shrinkage is None else float(self.shrinkage)
        except ValueError:
            share = self.shrinkage
        return StatisticsOptions(self.statistics, self.skip_tokens, self.token_cap, share, self._candidates)

    @property
    def _candidates(self) -> tuple[float, ...]:
        """The candidates for the shrinkage.

        Raises:
            RelaxPruneError: they are no numbers.
        """
        from relaxprune.problems.errors import RelaxPruneError

        try:
            return () if self.select is None else tuple(float(share) for share in self.select.split(","))
        except ValueError:
            raise RelaxPruneError(f"--select must be numbers with commas between, got {self.select!r}") from None


@dataclass(frozen=True)
class MemoryGroup:
    """Where weights and hidden states live during a run, and how large the files of the result are."""

    offload: Annotated[
        str | None,
        typer.Option(
            help="Where blocks wait for their turn: cpu (beside an accelerator) or disk; the model is not whole."
        ),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most memory of the device, such as 24GiB; decides what waits where."),
    ] = None
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most that a weight file of the result holds; 50GB by default.")
    ] = None

    @property
    def memory_bytes(self) -> int | None:
        """The memory in bytes, None for no bound.

        Raises:
            RelaxPruneError: it is no size.
        """
        return self._size("--memory", self.memory)

    @property
    def shard_bytes(self) -> int | None:
        """The size of a weight file in bytes, None for the default.

        Raises:
            RelaxPruneError: it is no size.
        """
        return self._size("--shard-size", self.shard_size)

    def _size(self, name: str, text: str | None) -> int | None:
        from relaxprune.support.sizes import parse_bytes

        return None if text is None else parse_bytes(name, text)


@dataclass(frozen=True)
class RunGroup:
    """The output folder, and how to run."""

    out: Annotated[Path | None, typer.Option(help="Output folder, new or empty.")] = None
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be pruned and stop.")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in the output folder.")] = False
    discard_damaged: Annotated[
        bool, typer.Option("--discard-damaged", help="With --resume: solve again the blocks whose files are damaged.")
    ] = False
    seed: Seed = 0
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that torch uses.")] = None
    json: Annotated[bool, typer.Option("--json", help="Events for machines: one JSON object per line.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result only.")] = False


@dataclass(frozen=True)
class CostWords:
    """The options that decide what a run does, and so what it costs."""

    how_much: PatternGroup = field(default_factory=PatternGroup)
    recipe: RecipeGroup = field(default_factory=RecipeGroup)
    how: SolverGroup = field(default_factory=SolverGroup)
    calibration: CalibrationGroup = field(default_factory=CalibrationGroup)
    layers: LayerGroup = field(default_factory=LayerGroup)
    loading: ModelGroup = field(default_factory=ModelGroup)
    certify: CertifyGroup = field(default_factory=CertifyGroup)
    statistics: StatisticsGroup = field(default_factory=StatisticsGroup)
    objective: ObjectiveGroup = field(default_factory=ObjectiveGroup)
    sharing: AllocationGroup = field(default_factory=AllocationGroup)
    rotation: RotationGroup = field(default_factory=RotationGroup)


@dataclass(frozen=True)
class PruneWords(CostWords):
    """All options of the command."""

    run: RunGroup = field(default_factory=RunGroup)
    memory: MemoryGroup = field(default_factory=MemoryGroup)
