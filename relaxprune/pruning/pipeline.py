"""Pruning a whole model in place, block by block, each block on inputs that come from the pruned ones before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from relaxprune.inputs.batches import check_fit
from relaxprune.inputs.layer_grams import GramMaker
from relaxprune.inputs.output_check import OutputCheck
from relaxprune.inputs.stages import Stage, make_agenda
from relaxprune.inputs.statistics import StatisticsCollector
from relaxprune.inputs.token_streams import token_streams
from relaxprune.models.adopted import adopted
from relaxprune.models.forward import borrowed
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.ranks.ranks import ALONE, Ranks
from relaxprune.residency.states import shelf_of
from relaxprune.residency.store import store_of

from .block_record import BlockRecord, BlockRecorder, CertificateRecorder
from .calibration import Calibration
from .channels.channel_permuter import ChannelPermuter
from .channels.permutation import Permutation
from .channels.reorder import apply_permutations
from .common_facts import common_facts
from .deciding import decided_counts
from .following import follow_leader
from .kept_records import KeptRecords, write_record
from .mask_solver import MaskSolver, SolvedLayer
from .objectives.following import DenseLoss
from .outcome import Outcome
from .plan import Plan
from .planner import plan_model
from .prune_report import PruneEvent, PruneReport
from .refining import Refining
from .route import Route, Step
from .selecting import ShrinkageSelector
from .shared_recorder import shared
from .sharing.dense_grams import DenseModel
from .stage_solver import StageSolver
from .tuning.block_tuner import BlockTuner, tunable
from .tuning.parts import Part, parts_of
from .tuning.recipes import TUNE_RECIPES
from .tuning.reselector import Choosing


def prune_model(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    plan: Plan | None = None,
    kinds: Sequence[str] | None = None,
    refine_batches: Iterable[Any] = (),
    recorder: BlockRecorder | None = None,
    on_event: Callable[[PruneEvent], None] | None = None,
    ranks: Ranks = ALONE,
    **words: Any,
) -> PruneReport:
    """Prune a model in place: statistics, Gram, solve, write, propagate, block after block.

    ``prune_model(model, batches, sparsity=0.5)`` is short for
    ``prune_model(model, batches, plan=plan_model(model, sparsity=0.5))``. A layer whose solver breaks down gets the
    mask that the solver started from, and its report's status says so. Pruned weights become +0.0; kept ones keep their
    bits, unless ``options.weights`` is "refit", or ``options.tune`` or ``options.refine`` is above 0: then they get new
    values. A method that is known for its weights, asked for by name alone, moves them and counts as published:
    ``prune_model(model, batches, solver="alps", sparsity=0.5)`` is ALPS. The model's training flags, ``use_cache``,
    hooks and the random state are as before when this returns or raises; after an exception the blocks finished so far
    stay pruned.

    Args:
        model: any module that computes on one device. One that accelerate has offloaded stays so: blocks that are
            pruned go back to where it keeps them.
        batches: iterable, read once, of tensors (the model's first argument) or mappings (its keyword arguments;
            an ``attention_mask`` of shape (batch, tokens) marks padding with 0, which never counts, and a
            ``decoder_attention_mask`` that of an encoder-decoder model's other tokens).
        plan: a plan of ``plan_model`` for this model; None to plan from ``words`` now.
        kinds: the kind of text of each window, in the order of the batches, such as ``TokenWindows.kinds``, for
            ``StatisticsOptions.select``; None if all are of one.
        refine_batches: more batches, which only ``options.refine`` and ``options.reselect`` read, such as text that the
            model wrote.
        recorder: keeps finished blocks; blocks that it has are applied instead of solved. An ``AllocationRecorder``
            also keeps how the sparsity is shared, a ``CertificateRecorder`` the certificates, a ``RefinementRecorder``
            what is done to the whole model.
        on_event: called when blocks and layers start and end; its exceptions end the run.
        ranks: processes that call this together, each with the same model, batches and plan, as ``ranks.joined`` gives
            them: each puts some of the batches through the model and solves some of the layers. All return the masks
            and weights that one process finds alone. The leader's ``recorder`` counts.
        **words: as for ``plan_model``: ``sparsity``, ``pattern`` or ``polytope``, ``allocation``, ``solver``,
            ``options``, and the solver's own options.

    Returns:
        The report, with the masks.

    Raises:
        RelaxPruneError: input that cannot be right, before any work, activations that are not finite, or no layer that
            could be pruned.
        RankError: another rank has died, hangs or has failed.
    """
    if plan is None:
        plan = plan_model(model, **words)
    elif words:
        raise RelaxPruneError(f"plan already holds all options of the run, got also {', '.join(sorted(words))}")
    if not isinstance(plan, Plan):
        raise RelaxPruneError(f"plan must be a Plan, as plan_model returns, got {type(plan).__name__}")
    with adopted(model):
        plan.check_model(model)
        kept = KeptRecords.of(recorder if ranks.leader else None, store_of(model).travels)
        outcome = Outcome(len(plan.layers), on_event, kept=kept)
        with borrowed(model), shelf_of(plan.residency) as shelf, OutputCheck(plan.weights) as check:
            text = Calibration(batches, kinds, refine_batches, ranks, shelf)
            run = _Run.prepare(plan, text, shared(recorder, ranks), outcome, check)
            run.prune()
    return outcome.report(run.plan, run.route.method)


@dataclass(frozen=True, eq=False)
class _Run:
    """One call of ``prune_model``: the plan, the parts that carry it out, and where weights may move so far."""

    plan: Plan
    route: Route
    gram_maker: GramMaker
    permuter: ChannelPermuter | None
    stage_solver: StageSolver
    recorder: BlockRecorder | None
    outcome: Outcome
    check: OutputCheck
    refining: Refining | None
    ranks: Ranks
    supports: dict[str, Tensor] = field(default_factory=dict)  # parameter name -> (rows, cols) bool

    @classmethod
    def prepare(
        cls,
        plan: Plan,
        text: Calibration,
        recorder: BlockRecorder | None,
        outcome: Outcome,
        check: OutputCheck,
    ) -> _Run:
        """Read the batches, look at how the model runs on them, and decide how much of each layer is pruned."""
        request, model, blocks, ranks = plan.request, plan.model, plan.blocks, text.ranks
        read, parts, further = text.read(request)
        check_fit(model, [*read, *further])
        if not ranks.alone:
            ranks.agree(common_facts(plan, [*read, *further], parts))
        portion = text.portion(read, request)
        with outcome.timed("capture"):
            check.run(model, read[0])
            plan = plan.without(check.failed)
            outcome.planned = len(plan.layers)
            streams = token_streams(model, plan.weights, read)
            gram_maker = GramMaker(request.options.statistics, streams, request.options.correct, parts)
            permuter = ChannelPermuter.of(request.options, request.target, model, blocks, gram_maker)
            agenda = make_agenda(model, plan.weights, blocks, read[0])
        outcome.stages = agenda.count
        refining = Refining.prepare(plan, [*read, *further], recorder, outcome)
        dense = DenseModel(model, blocks, plan.weights, read, portion, agenda, gram_maker.without_selection())
        decided = decided_counts(plan, dense, recorder, outcome)
        mask_solver = MaskSolver(decided, request.solver, request.options, ranks)
        route = Route(plan, portion, agenda, outcome.timed)
        selector = ShrinkageSelector.of(mask_solver, parts)
        loss = DenseLoss.prepare(plan.request.options, model, blocks, read, text.shelf, outcome.timed)
        stage_solver = StageSolver(gram_maker, mask_solver, selector, check, outcome, ranks, loss)
        return cls(plan, route, gram_maker, permuter, stage_solver, recorder, outcome, check, refining, ranks)

    @property
    def mask_solver(self) -> MaskSolver:
        """What solves a layer."""
        return self.stage_solver.mask_solver

    @property
    def loss(self) -> DenseLoss | None:
        """What layers minimise beside their Grams, None for nothing."""
        return self.stage_solver.loss

    def prune(self) -> None:
        """Go through all stages: observe, solve, apply, record, propagate; then see to the whole model."""
        for step in self.route.steps():
            self.outcome.announce("block_start", step.stage)
            block = self.begin(step)
            if block is None and step.stage.layers:
                block = BlockRecord(permutations=self.permute(step))
                self.remember(step.stage)
                for sums in self.observe(step):
                    for solved in self.stage_solver.solve(sums, step.stage):
                        self.apply(solved, block, step.stage)
                block = self.record(self.tune(block, step), step.stage)
            self.propagate(step)
            self.outcome.finish_block(step.stage, block, self.check.failed)
            if block is not None:
                self.leave(step.stage)
        if self.refining is not None:
            choosing = Choosing.of(self.mask_solver.options, self.mask_solver.decided, self.gram_maker.streams)
            self.refining.finish(self.supports, choosing, self.ranks)

    def remember(self, stage: Stage) -> None:
        """Keep the weights of a stage that is still dense, if the end of the run needs them."""
        if self.refining is not None:
            self.refining.remember(stage.layers)

    def leave(self, stage: Stage) -> None:
        """Let go of a finished block: should it be needed again, its record makes it what it is."""
        model, kept, index = self.plan.model, self.outcome.kept, stage.index
        layers = {layer.parameter: layer for layer in stage.layers}
        store_of(model).finish(index, lambda: write_record(model, layers, kept.record(index)))
        if self.refining is None:
            self.supports.clear()

    def begin(self, step: Step) -> BlockRecord | None:
        """Follow the dense model through a block while it is dense, if asked to, and recall what was made of it."""
        record = self.recorder.load(step.stage.index) if self.recorder and step.stage.layers else None
        if self.loss is not None:
            self.loss.follow(step.stage, step.pruned, wanted=record is None)
        return None if record is None else self.recall(step.stage, record)

    def recall(self, stage: Stage, record: BlockRecord) -> BlockRecord:
        """Apply the record of a finished block to the model and return it."""
        by_parameter = {layer.parameter: layer for layer in stage.layers}
        reported = {report.parameter for report in record.layers}
        if reported != set(record.masks) or not reported <= set(by_parameter):
            raise RelaxPruneError(
                f"the record of block {stage.index} must have a mask and a report for layers of that block only, "
                f"got masks of {sorted(record.masks)} and reports of {sorted(reported)}"
            )
        apply_permutations(self.plan.model, record.permutations)
        self.remember(stage)
        for report in record.layers:
            layer, mask = by_parameter[report.parameter], record.masks[report.parameter]
            zeros = self.mask_solver.staying(layer)
            self.supports[report.parameter] = mask if zeros is None else mask & ~zeros
            layer.write(mask, record.weights.get(report.parameter))
            self.outcome.finish_layer(stage, report)
        self.outcome.carried = record.seconds
        return record

    def permute(self, step: Step) -> list[Permutation]:
        """Reorder the channels of a stage that is still dense, if asked to."""
        if self.permuter is None:
            return []
        with self.outcome.timed("permute"):
            found = self.permuter.permute_stage(step.stage, step.pruned)
            self.ranks.agree({"orders of channels": [item.to_dict() for item in found]})
            return found

    def observe(self, step: Step) -> Iterator[StatisticsCollector]:
        """Yield the sums of a stage's inputs, all at once or part by part, each once the parts before are pruned."""
        joint = step.dense if self.mask_solver.options.correct else None
        with self.outcome.timed("statistics"):
            parts = self.gram_maker.split(step.stage, step.pruned)
        for part in parts:
            with self.outcome.timed("statistics"):
                weights = None if self.loss is None else self.loss.weights
                sums = self.gram_maker.gather(part, step.pruned, joint, weights)
                self.check.unite(self.ranks)
            yield sums

    def apply(self, solved: SolvedLayer, block: BlockRecord, stage: Stage) -> None:
        """Write a layer's mask, and its new weights if they move, into the model; add it to its block's record."""
        if solved.proof is not None and isinstance(self.recorder, CertificateRecorder):
            with self.outcome.timed("record"):
                self.recorder.save_certificate(solved.layer.parameter, *solved.proof)
        solved.layer.write(solved.mask, solved.weight)
        block.masks[solved.layer.parameter] = solved.mask
        self.supports[solved.layer.parameter] = solved.support
        block.layers.append(solved.report)
        self.outcome.finish_layer(stage, solved.report)

    def tune(self, block: BlockRecord, step: Step) -> BlockRecord:
        """Tune the weights of a block that may move together, if asked to."""
        options, blocks, stage = self.mask_solver.options, self.plan.blocks, step.stage
        movable = [layer for layer in stage.layers if layer.parameter in block.masks and tunable(layer)]
        if not options.tune or step.dense is None or not step.is_block or not movable:
            return block
        parts, recipe = [Part("", None, movable)], TUNE_RECIPES[options.tune_recipe]
        if options.tune_by == "part":
            parts = parts_of(blocks.modules[stage.index], blocks.names[stage.index], movable)
        tunings = []
        with self.outcome.timed("tune"):
            for part in parts:
                tuner = BlockTuner(stage, part, self.supports, step.pruned, step.dense, recipe)
                tunings.append(tuner.run(options.tune))
        return replace(block, tunings=[tuning for tuning in tunings if tuning is not None])

    def record(self, block: BlockRecord, stage: Stage) -> BlockRecord:
        """Complete the record of a block with its new weights and the time so far, and keep it."""
        if self.refining is not None:
            self.refining.refuse_new_block(stage.index)
        moves = self.mask_solver.options.block_values
        moved = [layer for layer in stage.layers if moves and layer.parameter in block.masks]
        if self.mask_solver.options.tune:
            follow_leader(self.ranks, moved, block.masks)
        weights = {layer.parameter: layer.matrix().cpu().clone() for layer in moved}
        block = replace(block, weights=weights, seconds=self.outcome.spent())
        if self.recorder:
            with self.outcome.timed("record"):
                self.recorder.save(stage.index, block)
        return block

    def propagate(self, step: Step) -> None:
        """Make the inputs of the next stage from this one, now that it is pruned."""
        with self.outcome.timed("propagate"):
            self.route.propagate(step)
