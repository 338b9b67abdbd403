"""The runs behind ``relaxprune demo``: one model, loaded once, pruned four times from the same dense weights."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from relaxprune.evaluation.perplexity import perplexity
from relaxprune.models.loading import LoadedModel
from relaxprune.pruning.prune_report import PruneReport, table
from relaxprune.runs.run_folder import RunFolder
from relaxprune.support.machine import machine_line, memory_line
from relaxprune.text.windows import CalibrationOptions, TokenWindows, evaluation_windows

from .endings import door, tell
from .eval import perplexity_line
from .loading import load_model, load_options
from .option_groups import CalibrationGroup, LayerGroup, ModelGroup, PatternGroup, RunGroup, SolverGroup
from .progress import duration
from .prune_run import PruneRequest, calibration_tokens, finish_folder, open_folder, prune_loaded, survey_request

_AMOUNTS = (PatternGroup(sparsity="50%"), PatternGroup(pattern="2:4"))


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        model: what ``load_model`` takes.
        out: folder for relaxprune's 50 % model.
        effort: how long to look for masks, as ``fw`` takes it.
        max_iterations: Frank-Wolfe iterations per layer, None for those of the effort.
        windows: calibration windows.
        held_out: windows of held-out text.
        length: tokens per window.
    """

    model: str
    out: Path
    effort: str
    max_iterations: int | None
    windows: int
    held_out: int
    length: int


@dataclass(frozen=True)
class Row:
    """One line of the table; ``report`` is None for the dense model."""

    method: str
    amount: str
    perplexity: float
    report: PruneReport | None

    def cells(self) -> tuple[str, ...]:
        """Return the line as text."""
        head = (self.method, self.amount, f"{self.perplexity:.2f}")
        if self.report is None:
            return (*head, "-", "-", "-", "-")
        report = self.report
        means = (report.mean_relative_error, report.mean_wanda_ratio, report.mean_relative_gap)
        return (*head, *(f"{mean:.4f}" for mean in means), f"{report.seconds['total']:.0f}")


def run_demo(settings: DemoSettings) -> int:
    """Run the demo and print its table.

    Returns:
        0; or 3 if relaxprune's masks were not better than Wanda's, or a run has notices.
    """
    started = time.perf_counter()
    requests = _requests(settings)
    for request in requests:
        request.check()
    evaluation = CalibrationOptions(windows=settings.held_out, length=settings.length)
    RunFolder.refuse_occupied(settings.out)
    print(f"machine: {machine_line()}", flush=True)
    with door():
        loaded = load_model(settings.model, load_options(ModelGroup()))
    windows = calibration_tokens(requests[0], loaded)
    held_out = evaluation_windows("builtin", loaded.tokenizer, evaluation)
    print(f"calibration: {settings.windows} windows of {settings.length} tokens, {windows.source}", flush=True)
    dense = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    rows = [Row("dense", "-", _perplexity(loaded, held_out), None)]
    notices: list[str] = []
    for request in requests:
        loaded.model.load_state_dict(dense)
        rows.append(_run(request, loaded, windows, held_out, notices))
    print(demo_table(rows, settings))
    print(f"effort: {settings.effort}; total {_total(started)}; {memory_line()}")
    return tell([*notices, *_comparison(rows)])


def left_behind(out: Path) -> str:
    """Say what an interrupted demo leaves in its output folder; it has no --resume."""
    if not (folder := RunFolder(out, {})).begun:
        return "nothing is written"
    state = "the finished 50 % model" if folder.finished else "an unfinished run, which can be deleted"
    return f"the next demo starts anew; {out} holds {state}"


def demo_table(rows: Iterable[Row], settings: DemoSettings) -> str:
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


def _requests(settings: DemoSettings) -> list[PruneRequest]:
    """Return the four pruning runs: two amounts, each by Wanda and by relaxprune."""
    calibration = CalibrationGroup("builtin", settings.windows, settings.length)
    wanda = SolverGroup(solver="wanda")
    primary = SolverGroup(solver="fw", effort=settings.effort, max_iterations=settings.max_iterations)
    kept = RunGroup(out=settings.out)
    return [
        PruneRequest(
            model=settings.model,
            how_much=amount,
            how=how,
            calibration=calibration,
            layers=LayerGroup(),
            loading=ModelGroup(),
            run=kept if how is primary and amount.sparsity is not None else RunGroup(),
        )
        for amount in _AMOUNTS
        for how in (wanda, primary)
    ]


def _run(
    request: PruneRequest, loaded: LoadedModel, windows: TokenWindows, held_out: TokenWindows, notices: list[str]
) -> Row:
    """Prune once, write the run folder if one is asked for, and measure."""
    amount = request.how_much.pattern or request.how_much.sparsity or ""
    method = "Wanda" if request.solver_name == "wanda" else "relaxprune"
    folder = None if request.run.out is None else open_folder(request, loaded, windows)
    plan = survey_request(request, loaded).plan
    report = prune_loaded(request, loaded, windows, plan, folder, f"{method} {amount}")
    if folder is not None:
        notices += finish_folder(request, folder, loaded, report)
    return Row(method, amount, _perplexity(loaded, held_out), report)


def _perplexity(loaded: LoadedModel, held_out: TokenWindows) -> float:
    """Measure the model as it is, and say so."""
    result = perplexity(loaded.model, held_out.tokens)
    print(perplexity_line(result.perplexity, result.windows, result.length, held_out.source), flush=True)
    return result.perplexity


def _comparison(rows: list[Row]) -> list[str]:
    """Say where relaxprune was not better than Wanda in the same pattern."""
    wanda = {row.amount: row.perplexity for row in rows if row.method == "Wanda"}
    return [
        f"at {row.amount} relaxprune's perplexity {row.perplexity:.2f} is not below Wanda's {wanda[row.amount]:.2f}"
        for row in rows
        if row.method == "relaxprune" and not row.perplexity < wanda[row.amount]
    ]


def _total(started: float) -> str:
    return duration(time.perf_counter() - started)
