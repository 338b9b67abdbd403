"""Refining the whole model at the end of a run: from the dense model's predictions to the weights that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from relaxprune.inputs.batches import Batch
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .block_record import BlockRecorder, RefinementRecord, RefinementRecorder
from .outcome import Outcome
from .plan import Plan
from .tuning.held_out import Windows
from .tuning.model_refiner import ModelRefiner, Schedule
from .tuning.predictions import DensePredictions, decoder_predicts
from .tuning.recipes import Recipe

_WARM_UP = 0.1  # of all steps


@dataclass(frozen=True, eq=False)
class Refining:
    """What a run needs to refine its model: the dense model's predictions, or the record of a finished refinement.

    Attributes:
        plan: the run's plan.
        recorder: keeps the refinement, if it can.
        outcome: takes it in.
        predictions: of the dense model, None where there is a record.
        record: of the refinement that an interrupted run has finished, else None.
    """

    plan: Plan
    recorder: BlockRecorder | None
    outcome: Outcome
    predictions: DensePredictions | None
    record: RefinementRecord | None

    @classmethod
    def prepare(
        cls, plan: Plan, batches: Sequence[Batch], recorder: BlockRecorder | None, outcome: Outcome
    ) -> Refining | None:
        """Run the model, which is dense yet, on all windows; None if it is not to be refined.

        Raises:
            RelaxPruneError: there are fewer than two windows.
        """
        if not plan.request.options.refine:
            return None
        record = recorder.load_refinement() if isinstance(recorder, RefinementRecorder) else None
        if record is not None:
            return cls(plan, recorder, outcome, None, record)
        with outcome.timed("refine"):
            windows = Windows.of(batches, decoder_predicts(plan.model, plan.blocks.name))
            pruned = [layer.weight for layer in plan.weights]
            predictions = DensePredictions(plan.model, windows, pruned, plan.blocks.name)
        return cls(plan, recorder, outcome, predictions, None)

    def refuse_new_block(self, block: int) -> None:
        """Raise RelaxPruneError if a block was just solved that the record of the refinement is for."""
        if self.record is not None:
            raise RelaxPruneError(
                f"the recorder must forget its refinement where block {block} has to be solved, got one all the same"
            )

    def finish(self, supports: Mapping[str, Tensor]) -> None:
        """Refine the model, or apply the record of it.

        Args:
            supports: parameter name -> (rows, cols) bool of every pruned layer, where its weights may move.
        """
        layers = [layer for layer in self.plan.weights if layer.parameter in supports]
        if self.record is None:
            self.outcome.finish_refining(self._refined(layers, supports))
            return
        if {layer.parameter for layer in layers} != set(self.record.weights):
            raise RelaxPruneError(
                f"the record of refining must have the weights of all {len(layers)} pruned layers and no others, "
                f"got {len(self.record.weights)}"
            )
        for layer in layers:
            layer.write(self.outcome.kept.masks[layer.parameter], self.record.weights[layer.parameter])
        self.outcome.carried = self.record.seconds
        self.outcome.finish_refining(self.record)

    def _refined(self, layers: Sequence[PrunableLayer], supports: Mapping[str, Tensor]) -> RefinementRecord:
        """Refine the model and keep the result."""
        assert self.predictions is not None  # there is no record
        options, plan = self.plan.request.options, self.plan
        schedule = Schedule(options.refine, Recipe(options.refine_share, warm_up=_WARM_UP), options.seed)
        with self.outcome.timed("refine"):
            refiner = ModelRefiner(plan.model, plan.blocks, self.predictions, schedule, self.outcome.announce_refining)
            refinement = refiner.run(layers, supports)
            weights = {layer.parameter: layer.matrix().cpu().clone() for layer in layers}
        record = RefinementRecord(refinement, weights, self.outcome.spent())
        if isinstance(self.recorder, RefinementRecorder):
            with self.outcome.timed("record"):
                self.recorder.save_refinement(record)
        return record
