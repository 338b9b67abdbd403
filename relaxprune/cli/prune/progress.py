"""The progress of a pruning run without a terminal: one line per layer."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relaxprune.pruning import LayerReport, PlannedLayer, PruneEvent


class Pace:
    """How far a run is, and when it will end.

    Work is measured in multiply-adds of one matrix product per layer (rows x cols x cols), which is what a solver's
    time is made of; the time left is the time so far scaled by the work left.

    Attributes:
        layers: number of layers in the plan.
        layers_done: number of finished ones.
    """

    def __init__(self, layers: Sequence[PlannedLayer]) -> None:
        """Prepare to follow a run that prunes ``layers``."""
        self._work = {layer.name: layer.rows * layer.cols**2 for layer in layers}
        self.layers = len(self._work)
        self.layers_done = 0
        self._done = 0
        self._redone = 0
        self._started: set[str | None] = set()

    def take(self, event: PruneEvent) -> None:
        """Count an event; a layer that never started was taken from an interrupted run and cost no time."""
        if event.kind == "layer_start":
            self._started.add(event.layer)
        if event.kind == "layer_done" and event.report is not None:
            work = self._work.get(event.report.name, 0)
            self.layers_done += 1
            self._done += work
            self._redone += 0 if event.report.name in self._started else work

    @property
    def share(self) -> float:
        """The share of the work that is done."""
        return self._done / max(1, sum(self._work.values()))

    def left(self, elapsed: float) -> float | None:
        """Return the seconds left, judged by the work done in ``elapsed`` seconds; None before any is done."""
        solved = self._done - self._redone
        return elapsed * (sum(self._work.values()) - self._done) / solved if solved else None


class PruneProgress:
    """Prints a line for each finished layer, pass of refining and round of reselecting, from ``prune_model``'s events.

    Args:
        layers: what will be pruned.
        title: the first word of every line.
    """

    def __init__(self, layers: Sequence[PlannedLayer], title: str = "pruning") -> None:
        self._pace = Pace(layers)
        self._title = title

    def __enter__(self) -> PruneProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, event: PruneEvent) -> None:
        """Print a line for a finished layer, and for a finished pass or round."""
        self._pace.take(event)
        if event.kind == "layer_done" and event.report is not None:
            block, layer = f"{event.block + 1}/{event.blocks}", f"{self._pace.layers_done}/{self._pace.layers}"
            left = self._pace.left(event.seconds_elapsed)
            time = "time left unknown" if left is None else f"left {duration(left)}"
            where = f"{self._title}: block {block}, layer {layer}, {event.report.name}"
            print(f"{where}: {describe_layer(event.report)}, {time}", flush=True)
        if event.kind in ("refine_start", "refine_pass", "reselect_start", "reselect_round"):
            print(f"{self._title}: {stage_of(event)}, {event.refining}", flush=True)


def stage_of(event: PruneEvent) -> str:
    """Return what an event that comes after all layers says is under way."""
    return "reselecting" if event.kind.startswith("reselect") else "refining"


def describe_layer(report: LayerReport) -> str:
    """Return a layer's result in a few words: error, error relative to Wanda's mask on the same Gram, gap."""
    return f"error {report.relative_error:.4f}, {report.wanda_ratio:.3f} of Wanda's, gap {report.relative_gap:.3f}"


def duration(seconds: float) -> str:
    """Return a time span as h:mm:ss, or as seconds with one decimal below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
