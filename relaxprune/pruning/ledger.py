"""What has come of a run so far: reports, masks, weights and time, and telling the listener."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from relaxprune.inputs.stages import Stage
from relaxprune.models.layers import PrunableLayer

from .block_tuning import BlockTuning
from .channels.permutation import Permutation
from .prune_report import LayerReport, PruneEvent, SkippedLayer

UNREACHED = "no batch reached it"


@dataclass
class Ledger:
    """The books of one call of ``prune_model``.

    Attributes:
        planned: number of layers to prune.
        on_event: called when blocks and layers start and end.
        stages: number of stages.
        carried: stage -> seconds of the sessions before this one.
        the others: as in ``PruneReport``.
    """

    planned: int
    on_event: Callable[[PruneEvent], None] | None
    stages: int = 0
    reports: list[LayerReport] = field(default_factory=list)
    skipped: list[SkippedLayer] = field(default_factory=list)
    masks: dict[str, Tensor] = field(default_factory=dict)
    permutations: list[Permutation] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    tunings: list[BlockTuning] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    carried: Mapping[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def finish(self, stage: Stage, report: LayerReport, mask: Tensor) -> None:
        """Take in a pruned layer."""
        self.reports.append(report)
        self.masks[report.parameter] = mask
        self.announce("layer_done", stage, report.name, report)

    def skip(self, layers: list[PrunableLayer]) -> None:
        """List layers that no batch reached."""
        self.skipped += [SkippedLayer(layer.name, UNREACHED) for layer in layers]

    def announce(self, kind: str, stage: Stage, layer: str | None = None, report: LayerReport | None = None) -> None:
        """Tell the listener what happened."""
        if self.on_event is not None:
            done = len(self.reports) + len(self.skipped)
            elapsed = time.perf_counter() - self.started
            self.on_event(PruneEvent(kind, stage.index, self.stages, layer, done, self.planned, report, elapsed))

    def spent(self) -> dict[str, float]:
        """Return the seconds of each stage, those of the interrupted sessions before this one included."""
        now = {**self.seconds, "total": time.perf_counter() - self.started}
        return {stage: self.carried.get(stage, 0.0) + now.get(stage, 0.0) for stage in sorted({*now, *self.carried})}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a ``with`` block to one of the report's stages."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
