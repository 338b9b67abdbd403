"""The runs behind ``relaxprune demo``: one model, loaded once, pruned four times from the same dense weights.

The finished blocks of each are kept, so that all four can be resumed: those of the 50 % model in its folder, those of
the others in a folder beside it, which goes when the demo is done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relaxprune import apply_masks, perplexity, read_masks
from relaxprune.models import LoadedModel
from relaxprune.options.statistics_options import MASK_SHRINKAGE
from relaxprune.pruning import make_plan
from relaxprune.runs import RunFolder
from relaxprune.runs.run_record import read_record
from relaxprune.support import machine_line, memory_line, table
from relaxprune.text import CalibrationOptions, TokenWindows, evaluation_windows

from .endings import door, tell
from .eval_texts import perplexity_line
from .loading import load_model, load_options
from .option_groups import ModelGroup, PatternGroup, SolverGroup
from .prune.folder import finish_folder, open_folder, refuse_small_disk
from .prune.job import PruneJob, resolve
from .prune.progress import duration
from .prune.run import calibration_tokens, prune_loaded
from .prune.words import CalibrationGroup, PruneWords, RunGroup, StatisticsGroup

PARTS = ".parts"
_AMOUNTS = (PatternGroup(sparsity="50%"), PatternGroup(pattern="2:4"))


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        model: what ``load_model`` takes.
        out: folder for relaxprune's 50 % model.
        resume: whether the demo that was interrupted there is continued.
        effort: how long to look for masks, as ``fw`` takes it.
        max_iterations: Frank-Wolfe iterations per layer, None for those of the effort.
        windows: calibration windows.
        held_out: windows of held-out text.
        length: tokens per window.
    """

    model: str
    out: Path
    resume: bool
    effort: str
    max_iterations: int | None
    windows: int
    held_out: int
    length: int

    @property
    def parts(self) -> Path:
        """The folder of the runs whose models are not kept."""
        return parts_of(self.out)


@dataclass(frozen=True)
class DemoRow:
    """One line of the table; ``report`` is that of ``relaxprune.json``, None for the dense model."""

    method: str
    amount: str
    perplexity: float
    report: Mapping[str, Any] | None

    def cells(self) -> tuple[str, ...]:
        """Return the line as text."""
        head = (self.method, self.amount, f"{self.perplexity:.2f}")
        if self.report is None:
            return (*head, "-", "-", "-", "-")
        means = (self.report[f"mean_{name}"] for name in ("relative_error", "wanda_ratio", "relative_gap"))
        return (*head, *(f"{mean:.4f}" for mean in means), f"{self.report['seconds']['total']:.0f}")


def run_demo(settings: DemoSettings) -> int:
    """Run the demo and print its table.

    Returns:
        0; or 3 if relaxprune's masks were not better than Wanda's, or a run has notices.
    """
    jobs = _jobs(settings)
    with RunFolder.hold(settings.out):
        for job in jobs:
            RunFolder.refuse_occupied(job.folder, settings.resume)
        return _compare(settings, jobs)


def _compare(settings: DemoSettings, jobs: list[PruneJob]) -> int:
    """Carry out the runs and print their table; returns the exit code."""
    started = time.perf_counter()
    evaluation = CalibrationOptions(windows=settings.held_out, length=settings.length)
    print(f"machine: {machine_line()}", flush=True)
    with door():
        loaded = load_model(settings.model, load_options(ModelGroup()))
    windows = calibration_tokens(jobs[-1], loaded)  # relaxprune's, for Wanda too: errors are on the same Grams
    held_out = evaluation_windows("builtin", loaded.tokenizer, evaluation)
    print(f"calibration: {len(windows)} windows of {settings.length} tokens, {windows.source}", flush=True)
    dense = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    rows = [DemoRow("dense", "-", _perplexity(loaded, held_out), None)]
    notices: list[str] = []
    for job in jobs:
        loaded.model.load_state_dict(dense)
        rows.append(_run(job, loaded, windows, held_out, notices))
    shutil.rmtree(settings.parts, ignore_errors=True)
    print(demo_table(rows, settings))
    print(f"effort: {settings.effort}; total {_total(started)}; {memory_line()}")
    return tell([*notices, *_comparison(rows)])


def parts_of(out: Path) -> Path:
    """Return the folder beside a demo's where the runs lie whose models are not kept."""
    return out.with_name(f"{out.name}{PARTS}")


def left_behind(out: Path) -> str:
    """Say what a demo that could not go on leaves."""
    parts = parts_of(out)
    folders = [RunFolder(path, {}) for path in (out, *(parts.iterdir() if parts.is_dir() else ()))]
    if not any(folder.begun for folder in folders):
        return "nothing is written"
    blocks = sum(len(folder.solved_blocks) for folder in folders)
    finished = f"the finished 50 % model is in {out}, and " if folders[0].finished else ""
    return f"{finished}{blocks} finished blocks are kept: --resume with --out {out} continues from them"


def demo_table(rows: Iterable[DemoRow], settings: DemoSettings) -> str:
    """Return the table with the conventions of its columns stated."""
    head = ("method", "pattern", "perplexity", "mean error", "of Wanda's", "certified gap", "seconds")
    lines = "\n".join(table([head, *(row.cells() for row in rows)]))
    return (
        f"\n{lines}\n\n"
        f"perplexity: {settings.held_out} held-out windows of {settings.length} tokens. mean error: mean over "
        "layers of objective / dense energy.\n"
        "of Wanda's: mean over layers of objective / objective of Wanda's mask on the same Gram. certified gap: mean "
        "over layers of\n(objective - proven lower bound) / objective. seconds: pruning, all blocks."
    )


def _jobs(settings: DemoSettings) -> list[PruneJob]:
    """Return the four pruning runs: two amounts, each by Wanda and by relaxprune."""
    calibration = CalibrationGroup("builtin", settings.windows, settings.length)
    wanda = SolverGroup(solver="wanda")
    statistics = StatisticsGroup(shrinkage=f"{MASK_SHRINKAGE:g}")  # Wanda's masks are the same without
    primary = SolverGroup(solver="fw", effort=settings.effort, max_iterations=settings.max_iterations)
    jobs = []
    for amount in _AMOUNTS:
        for how in (wanda, primary):
            kept = how is primary and amount.sparsity is not None
            name = f"{how.solver}-{'half' if amount.pattern is None else '2-4'}"
            run = RunGroup(out=settings.out if kept else settings.parts / name, resume=settings.resume)
            words = PruneWords(how_much=amount, how=how, calibration=calibration, run=run, statistics=statistics)
            jobs.append(resolve(settings.model, words))
    return jobs


def _run(
    job: PruneJob, loaded: LoadedModel, windows: TokenWindows, held_out: TokenWindows, notices: list[str]
) -> DemoRow:
    """Prune once, write the model that is kept, and measure."""
    target = job.request.target
    amount = target.pattern or f"{target.sparsity:.0%}"
    method = "Wanda" if job.request.solver.name == "wanda" else "relaxprune"
    plan = make_plan(loaded.model, job.request, job.tokens)
    refuse_small_disk(job, loaded, plan)
    folder = open_folder(job, loaded, windows)
    if folder.finished:
        folder.verify_files()
        apply_masks(loaded.model, read_masks(folder.path))
        notices += folder.notices
        facts: Mapping[str, Any] = read_record(folder.path)["report"]
    else:
        report = prune_loaded(job, windows, plan, folder, title=f"{method} {amount}")
        if method == "relaxprune" and target.pattern is None:
            notices += finish_folder(job, folder, loaded, report)
        facts = report.to_dict()
    return DemoRow(method, amount, _perplexity(loaded, held_out), facts)


def _perplexity(loaded: LoadedModel, held_out: TokenWindows) -> float:
    """Measure and print the model's perplexity."""
    result = perplexity(loaded.model, held_out.tokens)
    print(perplexity_line(result.perplexity, result.windows, result.length, held_out.source), flush=True)
    return result.perplexity


def _comparison(rows: list[DemoRow]) -> list[str]:
    """Return a notice for every pattern in which relaxprune was not better than Wanda."""
    wanda = {row.amount: row.perplexity for row in rows if row.method == "Wanda"}
    return [
        f"at {row.amount} relaxprune's perplexity {row.perplexity:.2f} is not below Wanda's {wanda[row.amount]:.2f}"
        for row in rows
        if row.method == "relaxprune" and not row.perplexity < wanda[row.amount]
    ]


def _total(started: float) -> str:
    return duration(time.perf_counter() - started)
