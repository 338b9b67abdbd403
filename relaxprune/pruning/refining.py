"""What is done to the whole model at the end of a run, towards the dense model's predictions.

Masks are chosen again, and then the weights that are kept move, as far as either is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from relaxprune.inputs.batches import Batch
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.ranks.ranks import Ranks

from .block_record import BlockRecorder, RefinementRecord, RefinementRecorder
from .following import follow_leader, leader_masks
from .outcome import Outcome
from .plan import Plan
from .source_zeros import staying_zeros
from .tuning.gains import Reselection
from .tuning.held_out import Windows
from .tuning.model_refiner import ModelRefiner, Schedule
from .tuning.predictions import DensePredictions, decoder_predicts
from .tuning.recipes import Recipe
from .tuning.reselector import Choosing, Reselector
from .tuning.whole_model import WholeModel

_WARM_UP = 0.1  # of all steps


@dataclass(frozen=True, eq=False)
class Refining:
    """What a run needs to refine its model, or to choose its masks again; or the record of how it has.

    Attributes:
        plan: the run's plan.
        recorder: keeps the result, if it can.
        outcome: takes it in.
        predictions: of the dense model, None where there is a record.
        record: of what an interrupted run has finished, else None.
        dense: parameter name -> (rows, cols) on the CPU, the weights of layers before they were pruned; empty unless
            masks are chosen again.
    """

    plan: Plan
    recorder: BlockRecorder | None
    outcome: Outcome
    predictions: DensePredictions | None
    record: RefinementRecord | None
    dense: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls, plan: Plan, batches: Sequence[Batch], recorder: BlockRecorder | None, outcome: Outcome
    ) -> Refining | None:
        """Run the model, which is dense yet, on all windows; None if there is nothing to do with the whole model.

        Raises:
            RelaxPruneError: there are fewer than two windows.
        """
        if not plan.request.options.whole_model:
            return None
        record = recorder.load_refinement() if isinstance(recorder, RefinementRecorder) else None
        if record is not None:
            return cls(plan, recorder, outcome, None, record)
        with outcome.timed("refine" if plan.request.options.refine else "reselect"):
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

    def remember(self, layers: Sequence[PrunableLayer]) -> None:
        """Keep the weights of layers that are about to be pruned, if masks are chosen again."""
        if self.plan.request.options.reselect:
            self.dense.update({layer.parameter: layer.matrix().cpu().clone() for layer in layers})

    def finish(self, supports: dict[str, Tensor], choosing: Choosing, ranks: Ranks) -> None:
        """Choose the model's masks again and refine it, or apply the record of that; all ranks end with the leader's.

        Args:
            supports: parameter name -> (rows, cols) bool of every pruned layer, where its weights may move; those of
                the new masks afterwards.
            choosing: how masks are chosen again.
            ranks: of the run.
        """
        layers = [layer for layer in self.plan.weights if layer.parameter in supports]
        record = self._made(layers, supports, choosing) if self.record is None else self._recalled(self.record, layers)
        self.outcome.finish_refining(replace(record, masks=dict(leader_masks(ranks, record.masks))))
        follow_leader(ranks, layers, self.outcome.masks)

    def _recalled(self, record: RefinementRecord, layers: Sequence[PrunableLayer]) -> RefinementRecord:
        """Make the model what a record says, and return the record."""
        if {layer.parameter for layer in layers} != record.layers:
            raise RelaxPruneError(
                f"the record of refining must have the weights of all {len(layers)} pruned layers and no others, "
                f"got {len(record.layers)}"
            )
        masks, weights = {**self.outcome.kept.masks, **record.masks}, record.weights or self.dense
        for layer in layers:
            layer.write(masks[layer.parameter], weights[layer.parameter])
        self.outcome.carried = record.seconds
        return record

    def _made(
        self, layers: Sequence[PrunableLayer], supports: dict[str, Tensor], choosing: Choosing
    ) -> RefinementRecord:
        """Choose the masks again and refine the model, as far as asked for, and keep the result."""
        assert self.predictions is not None  # there is no record
        options, plan = self.plan.request.options, self.plan
        whole, reselection, refinement = WholeModel(plan.model, plan.blocks, self.predictions), None, None
        masks: dict[str, Tensor] = {}
        if options.reselect:
            with self.outcome.timed("reselect"):
                reselection, masks = self._reselected(whole, layers, choosing)
                for layer in layers:
                    zeros = staying_zeros(self.dense[layer.parameter], options)
                    mask = masks[layer.parameter]
                    supports[layer.parameter] = mask if zeros is None else mask & ~zeros
        if options.refine:
            schedule = Schedule(options.refine, Recipe(options.refine_share, warm_up=_WARM_UP), options.seed)
            with self.outcome.timed("refine"):
                refinement = ModelRefiner(whole, schedule, self.outcome.announce_refining).run(layers, supports)
        moved = layers if options.new_values else ()
        weights = {layer.parameter: layer.matrix().cpu().clone() for layer in moved}
        record = RefinementRecord(refinement, weights, self.outcome.spent(), reselection, masks)
        if isinstance(self.recorder, RefinementRecorder):
            with self.outcome.timed("record"):
                self.recorder.save_refinement(record)
        return record

    def _reselected(
        self, whole: WholeModel, layers: Sequence[PrunableLayer], choosing: Choosing
    ) -> tuple[Reselection, dict[str, Tensor]]:
        """Choose the masks of some layers again; return what was gained, and the masks."""
        options, before = self.plan.request.options, dict(self.outcome.kept.masks)
        reselector = Reselector(whole, choosing, self.dense, self.outcome.announce_refining)
        return reselector.run(layers, before, options.reselect, options.seed)
