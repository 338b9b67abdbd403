"""The outcome of a run so far: reports, masks, weights and time; and its events."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from relaxprune.inputs.stages import Stage
from relaxprune.models.layers import SkippedLayer
from relaxprune.problems.errors import RelaxPruneError

from .block_record import BlockRecord, RefinementRecord
from .channels.permutation import Permutation
from .coverage import Coverage
from .kept_records import KeptRecords
from .layer_report import LayerReport
from .plan import Plan
from .prune_report import UNREACHED, PruneEvent, PruneReport
from .tuning.gains import BlockTuning, Refinement, RefiningState, ReselectingState, Reselection


@dataclass
class Outcome:
    """The outcome so far of one call of ``prune_model``.

    Attributes:
        planned: number of layers to prune.
        on_event: called when blocks and layers start and end.
        stages: number of stages.
        kept: the records of finished blocks.
        refined: the new values of weights that have moved once all blocks were finished.
        reselected: the masks of layers that were chosen again then.
        carried: stage -> seconds of the sessions before this one.
        the others: as in ``PruneReport``.
    """

    planned: int
    on_event: Callable[[PruneEvent], None] | None
    stages: int = 0
    reports: list[LayerReport] = field(default_factory=list)
    skipped: list[SkippedLayer] = field(default_factory=list)
    kept: KeptRecords = field(default_factory=KeptRecords)
    permutations: list[Permutation] = field(default_factory=list)
    refined: Mapping[str, Tensor] = field(default_factory=dict)
    reselected: Mapping[str, Tensor] = field(default_factory=dict)
    tunings: list[BlockTuning] = field(default_factory=list)
    refinement: Refinement | None = None
    reselection: Reselection | None = None
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    carried: Mapping[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def finish_layer(self, stage: Stage, report: LayerReport) -> None:
        """Add a pruned layer's report."""
        self.reports.append(report)
        self.announce("layer_done", stage, report.name, report)

    def finish_block(self, stage: Stage, record: BlockRecord | None, failed: Mapping[str, str]) -> None:
        """Take in what became of a stage.

        Args:
            stage: its layers; those without a mask were not reached.
            record: what was recorded, None where it has no layers.
            failed: layer name -> why it must not be pruned, for layers that were reached and have no mask all the same.
        """
        if record is not None:
            self.kept.add(stage.index, record)
            self.permutations += record.permutations
            self.tunings += record.tunings
        missed = [layer for layer in stage.layers if record is None or layer.parameter not in record.masks]
        self.skipped += [SkippedLayer(layer.name, failed.get(layer.name, UNREACHED)) for layer in missed]
        self.announce("block_done", stage)

    def finish_refining(self, record: RefinementRecord) -> None:
        """Take in what was done to the whole model."""
        self.refined, self.reselected = record.weights, record.masks
        self.refinement, self.reselection = record.refinement, record.reselection

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The masks of all pruned layers: parameter name -> (rows, cols) bool on the CPU, True = kept."""
        return {**self.kept.masks, **self.reselected} if self.reselected else self.kept.masks

    def announce(self, kind: str, stage: Stage, layer: str | None = None, report: LayerReport | None = None) -> None:
        """Send an event to the listener."""
        self._send(kind, stage.index, layer=layer, report=report)

    def announce_refining(self, kind: str, state: RefiningState | ReselectingState) -> None:
        """Tell the listener how far refining, or choosing masks again, is."""
        self._send(kind, self.stages - 1, refining=state)

    def _send(self, kind: str, block: int, **more: Any) -> None:
        """Send an event to the listener, if there is one."""
        if self.on_event is not None:
            event = PruneEvent(
                kind=kind,
                block=block,
                blocks=self.stages,
                layer_index=len(self.reports) + len(self.skipped),
                layers=self.planned,
                seconds_elapsed=time.perf_counter() - self.started,
                **{"layer": None, "report": None, **more},
            )
            self.on_event(event)

    def spent(self) -> dict[str, float]:
        """Return the seconds of each stage, including those of the interrupted sessions before this one."""
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

    def report(self, plan: Plan, propagation: str) -> PruneReport:
        """Return the report of the whole run.

        Raises:
            RelaxPruneError: nothing was pruned.
        """
        request, masks = plan.request, self.masks
        if not self.reports:
            left = self.skipped[0]
            raise RelaxPruneError(
                f"batches must lead to a layer that can be pruned, got none: {left.name!r} stays ({left.reason})"
            )
        return PruneReport(
            layers=self.reports,
            skipped=[*plan.skipped, *self.skipped],
            seconds=self.spent(),
            polytope=request.target.to_dict(),
            solver=request.solver.name,
            left_out=request.left_out,
            options={**asdict(request.options), "solver_options": request.solver.options()},
            propagation=propagation,
            masks=masks,
            permutations=self.permutations,
            weights={**self.kept.weights, **self.refined} if self.refined else self.kept.weights,
            tunings=self.tunings,
            refinement=self.refinement,
            reselection=self.reselection,
            coverage=Coverage(
                layers=len(masks),
                layer_weights=sum(layer.rows * layer.cols for layer in self.reports),
                pruned_weights=sum(int((~mask).sum()) for mask in masks.values()),
                of=plan.matrices,
            ),
        )
