"""What a pruning run shows while it works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from relaxprune.pruning.plan import PrunePlan
    from relaxprune.pruning.report import LayerReport, PruneEvent


class PruneProgress:
    """Follows the events of ``prune_model``; a context manager, so that the terminal is always left in order.

    Work is measured in multiply-adds of one matrix product per layer (rows x cols x cols), which is what a solver's
    time is made of; the time left is the time so far scaled by the work left.
    """

    def __init__(self, plan: PrunePlan, title: str = "pruning", interactive: bool | None = None) -> None:
        """Prepare to follow a run of ``plan``.

        Args:
            plan: what will be pruned.
            title: the first word of every line.
            interactive: draw a bar (True) or print lines (False); None asks whether stdout is a terminal.
        """
        self._work = {layer.name: layer.rows * layer.cols**2 for layer in plan.layers}
        self._title = title
        self._layers_done = 0
        self._work_done = 0
        self._work_redone = 0
        self._started: set[str | None] = set()
        self._bar: Progress | None = None
        if sys.stdout.isatty() if interactive is None else interactive:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._task = self._bar.add_task(title, total=max(1, sum(self._work.values())), note="")

    def __enter__(self) -> PruneProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: PruneEvent) -> None:
        """Show one event."""
        if event.kind == "layer_start":
            self._started.add(event.layer)
            if self._bar is not None:
                self._bar.update(self._task, description=f"{self._title} {event.layer}")
        if event.kind == "layer_done" and event.report is not None:
            self._layer_done(event, event.report)

    def _layer_done(self, event: PruneEvent, report: LayerReport) -> None:
        """Count a finished layer; one that never started was taken from an interrupted run and cost no time."""
        work = self._work.get(report.name, 0)
        self._layers_done += 1
        self._work_done += work
        self._work_redone += 0 if report.name in self._started else work
        if self._bar is not None:
            self._bar.update(self._task, completed=self._work_done, note=describe_layer(report))
            return
        head = f"{self._title}: block {event.block + 1}/{event.blocks}, layer {self._layers_done}/{len(self._work)}"
        print(f"{head}, {report.name}: {describe_layer(report)}, {self._left(event)}", flush=True)

    def _left(self, event: PruneEvent) -> str:
        """Say how much time is left, judged by the work done so far."""
        solved = self._work_done - self._work_redone
        if not solved:
            return "time left unknown"
        left = event.seconds_elapsed * (sum(self._work.values()) - self._work_done) / solved
        return f"left {duration(left)}"


def describe_layer(report: LayerReport) -> str:
    """Say a layer's result in a few words: error, error relative to Wanda's mask on the same Gram, gap."""
    return f"error {report.relative_error:.4f}, {report.wanda_ratio:.3f} of Wanda's, gap {report.relative_gap:.3f}"


def duration(seconds: float) -> str:
    """Return a time span as h:mm:ss, or as seconds with one decimal below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
