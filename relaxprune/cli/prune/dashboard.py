"""A pruning run on a terminal: its position, the results of its layers, and its cost."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from relaxprune.support import resident_bytes

from .progress import Pace, duration, stage_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relaxprune.pruning import LayerReport, PlannedLayer, PruneEvent

_SHOWN = 6  # layers that are listed, the last ones
_GIB = 2**30


class Dashboard:
    """Shows the events of ``prune_model``; a context manager, so that the terminal is always restored.

    Args:
        layers: what will be pruned.
        title: of the panel.
        console: to draw on; None for stdout.
    """

    def __init__(self, layers: Sequence[PlannedLayer], title: str = "pruning", console: Console | None = None) -> None:
        self._pace = Pace(layers)
        self._title = title
        self._reports: list[LayerReport] = []
        self._event: PruneEvent | None = None
        self._most = 0
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=2)

    def __enter__(self) -> Dashboard:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: PruneEvent) -> None:
        """Take in one event."""
        self._event = event
        self._most = max(self._most, resident_bytes() or 0)
        self._pace.take(event)
        if event.report is not None:
            self._reports.append(event.report)
        self._live.refresh()

    def _draw(self) -> Panel:
        """Return the whole picture."""
        parts: list[Table | ProgressBar | Text] = [self._head(), ProgressBar(total=1.0, completed=self._pace.share)]
        if self._reports:
            parts.append(self._layers())
        return Panel(Group(*parts), title=Text(self._title), padding=(0, 1))

    def _head(self) -> Table:
        """Return where the run is, in two columns."""
        event, pace = self._event, self._pace
        table = Table.grid(padding=(0, 2))
        block = "-" if event is None else f"{event.block + 1} of {event.blocks}"
        layer = "-" if event is None or event.layer is None else event.layer
        table.add_row("block", Text(block), "layers", Text(f"{pace.layers_done} of {pace.layers}"))
        table.add_row("layer", Text(layer), "memory", Text(f"{self._most / _GIB:.2f} GiB at most"))
        if self._reports:
            ratio = sum(report.wanda_ratio for report in self._reports) / len(self._reports)
            gap = sum(report.relative_gap for report in self._reports) / len(self._reports)
            table.add_row("error", Text(f"{ratio:.3f} of Wanda's"), "gap", Text(f"{gap:.3f}"))
        if event is not None and event.refining is not None:
            table.add_row(stage_of(event), Text(str(event.refining)))
        elapsed = 0.0 if event is None else event.seconds_elapsed
        left = pace.left(elapsed) if event is None or event.refining is None else None
        table.add_row("time", Text(duration(elapsed)), "left", Text("unknown" if left is None else duration(left)))
        return table

    def _layers(self) -> Table:
        """Return the last layers, one line each."""
        table = Table(box=None, pad_edge=False, expand=True)
        table.add_column("layer", overflow="ellipsis", no_wrap=True, ratio=1)
        for name in ("error", "of Wanda's", "gap", "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for report in self._reports[-_SHOWN:]:
            numbers = (f"{report.relative_error:.4f}", f"{report.wanda_ratio:.3f}", f"{report.relative_gap:.3f}")
            table.add_row(Text(report.name), *numbers, duration(report.cost.seconds))
        return table
