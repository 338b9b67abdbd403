"""What ``relaxprune demo`` does: its two extents, and the pruning runs that they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from relaxprune.options.statistics_options import MASK_SHRINKAGE
from relaxprune.pruning import make_plan

from .option_groups import PatternGroup, SolverGroup
from .prune.job import PruneJob, resolve
from .prune.words import CalibrationGroup, PruneWords, RunGroup, StatisticsGroup

PARTS = ".parts"
HALF, TWO_OF_FOUR = PatternGroup(sparsity="50%"), PatternGroup(pattern="2:4")


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much a demo does.

    Attributes:
        amounts: how much is pruned; the model of the first is kept.
        blocks: only the first so many blocks are pruned; None for all.
        effort: how long to look for masks, as ``fw`` takes it.
        max_iterations: Frank-Wolfe iterations per layer, None for those of the effort.
        windows: calibration windows.
        held_out: windows of held-out text.
        length: tokens per window.
        batch_tokens: tokens that go through the model at once; each first batch runs through it several times, to prove
            that blocks can be run one by one.
    """

    amounts: tuple[PatternGroup, ...]
    blocks: int | None = None
    effort: str = "fast"
    max_iterations: int | None = None
    windows: int
    held_out: int
    length: int
    batch_tokens: int = 2048


SHORT = Extent(amounts=(HALF,), blocks=10, max_iterations=24, windows=12, held_out=16, length=128, batch_tokens=256)
FULL = Extent(amounts=(HALF, TWO_OF_FOUR), windows=16, held_out=20, length=512)


@dataclass(frozen=True)
class DemoSettings:
    """What one demo is asked to do.

    Attributes:
        model: what ``load_model`` takes.
        out: folder for relaxprune's 50 % model.
        resume: whether the demo that was interrupted there is continued.
        extent: how much it does.
    """

    model: str
    out: Path
    resume: bool
    extent: Extent

    @property
    def parts(self) -> Path:
        """The folder beside ``out`` of the runs whose models are not kept; it is there while the demo is not done."""
        return parts_of(self.out)

    def jobs(self) -> list[PruneJob]:
        """Return the pruning runs: for each amount relaxprune's, then Wanda's on the same windows."""
        extent = self.extent
        calibration = CalibrationGroup("builtin", extent.windows, extent.length)
        primary = SolverGroup(solver="fw", effort=extent.effort, max_iterations=extent.max_iterations)
        statistics = StatisticsGroup(shrinkage=f"{MASK_SHRINKAGE:g}")  # Wanda's masks are the same without
        jobs = []
        for amount in extent.amounts:
            for how in (primary, SolverGroup(solver="wanda")):
                kept = how is primary and amount is extent.amounts[0]
                name = f"{how.solver}-{'half' if amount.pattern is None else '2-4'}"
                run = RunGroup(out=self.out if kept else self.parts / name, resume=self.resume)
                words = PruneWords(how_much=amount, how=how, calibration=calibration, run=run, statistics=statistics)
                jobs.append(replace(resolve(self.model, words), batch_tokens=extent.batch_tokens))
        return jobs


def first_blocks(job: PruneJob, model: nn.Module, count: int | None) -> PruneJob:
    """Return a job that prunes only the first so many blocks of the model, if it has more."""
    names = make_plan(model, job.request, job.tokens).blocks.names
    if count is None or count >= len(names):
        return job
    options = replace(job.request.options, include=tuple(f"{name}.*" for name in names[:count]))
    return replace(job, request=replace(job.request, options=options))


def parts_of(out: Path) -> Path:
    """Return the folder beside a demo's where the runs lie whose models are not kept."""
    return out.with_name(f"{out.name}{PARTS}")
