"""Pruning a whole model in place, block by block, each block on inputs that come from the pruned ones before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from relaxprune.inputs.batches import Batch, borrowed, read_batches, without_first
from relaxprune.inputs.dense_pass import dense_grams
from relaxprune.inputs.dense_stream import DenseStream
from relaxprune.inputs.gathering import Gathering
from relaxprune.inputs.stages import Agenda, Propagation, Rerun, Stage, block_propagation, make_agenda
from relaxprune.inputs.statistics import StatisticsCollector
from relaxprune.inputs.token_streams import decoder_layers
from relaxprune.options.allocation import Allocation
from relaxprune.options.prune_options import PruneOptions as PruneOptions
from relaxprune.options.prune_options import Target as Target
from relaxprune.options.solve_options import default_solver
from relaxprune.problems import Gram
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes import Polytope
from relaxprune.solvers import Solver, make_solver

from .block_record import AllocationRecorder, BlockRecord, BlockRecorder, CertificateRecorder
from .block_tuning import BlockTuner, check_batches, check_replayed, tunable
from .channels.channel_permuter import ChannelPermuter, check_permute
from .channels.permutation import Permutation
from .channels.reorder import apply_permutations
from .layer_certificates import solver_for
from .layer_solving import LayerInputs, MaskSolver
from .ledger import UNREACHED as UNREACHED
from .ledger import Ledger
from .plan import Survey, survey_model
from .prune_report import LayerReport, PruneEvent, PruneReport
from .sharing.counts import allocate
from .sharing.sensitivity import sensitivities


def prune_model(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    polytope: Polytope | None = None,
    allocation: str | Allocation = "uniform",
    solver: str | Solver | None = None,
    options: PruneOptions | None = None,
    recorder: BlockRecorder | None = None,
    on_event: Callable[[PruneEvent], None] | None = None,
    **solver_options: Any,
) -> PruneReport:
    """Prune a model in place: statistics, Gram, solve, write, propagate, block after block.

    Everything is checked before the first forward pass. A layer whose solver breaks down keeps the mask that the
    solver started from, and its report's status says so. Pruned weights become +0.0; kept ones keep their bits, unless
    ``options.weights`` is "refit": then they get new values. The model's training flags, ``use_cache``, hooks and the
    random state are as before when this returns or raises; after an exception the blocks finished so far stay pruned.

    Args:
        model: any module on one device; transformers language models are pruned in their blocks only, unless
            ``options.include`` says otherwise.
        batches: iterable, read once, of tensors (the model's first argument) or mappings (its keyword arguments;
            an ``attention_mask`` of shape (batch, tokens) marks padding with 0, which never counts, and a
            ``decoder_attention_mask`` that of an encoder-decoder model's other tokens).
        sparsity: fraction to prune in every row. Give exactly one of this, ``pattern`` and ``polytope``.
        pattern: "N:M", keep N of every M consecutive columns.
        polytope: one feasible set for all layers.
        allocation: how the sparsity is shared among layers and rows: "uniform", "layer", "owl", "model", or an
            ``Allocation`` with options. With "owl" and "model" a first pass over the dense model decides the layers'
            counts; then all layers together lose at most floor(sparsity * weights), less what no whole entry of every
            row fits into. Layers that this pass does not reach, but the blocks once pruned do, have the sparsity.
        solver: name or instance, as for ``solve``; None is "fw", and "reconstruct" where weights move.
        options: which layers, and with how much effort; the defaults of ``PruneOptions`` if None.
        recorder: keeps finished blocks; blocks that it has are applied instead of solved. A ``CertificateRecorder``
            keeps the certificates too.
        on_event: called when blocks and layers start and end; its exceptions end the run.
        **solver_options: options of the solver, as for ``solve``. With ``options.certify`` "diagonal" or "sdp"
            fw's ``tighten`` is "diagonal" unless it is given here: certificates go on from there. An instance's "none"
            counts as not given.

    Returns:
        The report, with the masks.

    Raises:
        RelaxPruneError: input that cannot be right, before any work, or activations that are not finite.
    """
    options = options or PruneOptions()
    target = Target(sparsity, pattern, polytope, Allocation.of(allocation))
    named = default_solver(options.moves) if solver is None else solver
    chosen = solver_for(options.certify, make_solver(named, **solver_options), solver_options)
    options.check_for(chosen)
    check_permute(options, target)
    survey = survey_model(model, target, options, solver=chosen)
    books = Ledger(len(survey.layers), on_event)
    run = _Run(model, survey, MaskSolver(target, chosen, options), recorder, books)
    with borrowed(model):
        run.prune(batches)
    return PruneReport(
        layers=books.reports,
        skipped=[*survey.plan.skipped, *books.skipped],
        seconds=books.spent(),
        polytope=target.to_dict(),
        solver=chosen.name,
        options={**dataclasses.asdict(options), "solver_options": chosen.options()},
        propagation=run.propagation,
        masks=books.masks,
        permutations=books.permutations,
        weights=books.weights,
        tunings=books.tunings,
    )


@dataclass
class _Run:
    """One call of ``prune_model``: what was asked for, and how it is done."""

    model: nn.Module
    survey: Survey
    mask_solver: MaskSolver
    recorder: BlockRecorder | None
    books: Ledger
    permuter: ChannelPermuter | None = None
    propagation: str = "rerun"
    gathering: Gathering = field(default_factory=Gathering)
    streams: list[DenseStream] = field(default_factory=list)

    @property
    def options(self) -> PruneOptions:
        """The options of the run."""
        return self.mask_solver.options

    def prune(self, batches: Iterable[Any]) -> None:
        """Go through all stages: layers before the blocks, the blocks, layers after them."""
        model, options = self.model, self.options
        read = without_first(read_batches(batches), options.statistics.skip_tokens)
        options.statistics.check_for(len(read))
        check_batches(options.tune, len(read))
        rerun = Rerun(model, read)
        blocks = self.survey.blocks
        with self.books.timed("capture"):
            of_decoder = decoder_layers(model, self.survey.layers, read)
            self.gathering = Gathering(options.statistics, of_decoder, options.correct)
            self.permuter = ChannelPermuter.of(options, self.mask_solver.target, model, blocks, of_decoder)
            agenda = make_agenda(model, self.survey.layers, blocks, read[0])
        self.books.stages = agenda.count
        if self.mask_solver.target.allocation.measures:
            self.allocate(read, agenda)
        if options.tune and agenda.before:  # refused before anything is pruned
            check_replayed(options.tune, block_propagation(model, blocks, read[:1])[0])
        outside = self.beside(rerun) if agenda.before or agenda.after else None
        for stage in agenda.before:
            self.prune_stage(stage, rerun, outside)
        if any(stage.layers for stage in agenda.blocks):
            # Only now: the blocks' inputs come through the layers before them, which are pruned by now.
            with self.books.timed("capture"):
                propagation, self.propagation = block_propagation(model, blocks, read)
                inside = self.beside(propagation, outside if agenda.before else None, read)
            check_replayed(options.tune, propagation)
            for stage in propagation.ordered(agenda.blocks):
                self.prune_stage(stage, propagation, inside)
        for stage in agenda.after:
            self.prune_stage(stage, rerun, outside)

    def beside(
        self, propagation: Propagation, before: DenseStream | None = None, batches: Sequence[Batch] = ()
    ) -> DenseStream | None:
        """Return the dense model's stream beside a propagation, where anything looks at it.

        Args:
            propagation: of the pruned model.
            before: the stream through layers that are pruned by now and come before what ``propagation`` goes through.
            batches: calibration batches.
        """
        if self.options.correct:
            if before is None:
                dense = propagation.fork()
            else:
                with before.dense():
                    dense, _ = block_propagation(self.model, self.survey.blocks, batches)
                if isinstance(dense, Rerun):
                    return before  # it runs the same, and keeps the dense weights of the layers before too
        elif self.options.tune and not isinstance(propagation, Rerun):
            dense = propagation  # the dense block's outputs on the pruned model's inputs
        else:
            return None
        self.streams.append(DenseStream(dense, follows=self.options.correct > 0))
        return self.streams[-1]

    def allocate(self, batches: Sequence[Batch], agenda: Agenda) -> None:
        """Decide how much each layer is pruned, by a pass over the dense model or as the recorder has it."""
        keeper = self.recorder if isinstance(self.recorder, AllocationRecorder) else None
        model, target, blocks = self.model, self.mask_solver.target, self.survey.blocks
        counts = None if keeper is None else keeper.load_allocation()
        if counts is None:
            with self.books.timed("allocate"):
                shown = dense_grams(model, blocks, batches, agenda, self.gathering)
                where = {layer.name: blocks.index_of(layer) for layer in self.survey.layers}
                asked, layers = target.allocation, self.survey.layers
                weights = sensitivities(model, layers, batches, self.options.seed) if asked.kind == "model" else {}
                counts = allocate(asked, target.sparsity or 0.0, shown, where, weights)
            if keeper is not None:
                keeper.save_allocation(counts)
        self.mask_solver = dataclasses.replace(self.mask_solver, target=target.with_counts(counts))

    def prune_stage(self, stage: Stage, propagation: Propagation, dense: DenseStream | None) -> None:
        """Prune the layers of one stage, from the recorder or by solving, and make the inputs of the next."""
        self.books.announce("block_start", stage)
        for stream in self.streams:
            stream.keep(stage)
        record = self.recorder.load(stage.index) if self.recorder and stage.layers else None
        if record is not None:
            self.redo(stage, record)
        elif stage.layers:
            permutations = self.permute(stage, propagation)
            record = dataclasses.replace(self.solve_stage(stage, propagation, dense), permutations=permutations)
            if self.recorder:
                with self.books.timed("record"):
                    self.recorder.save(stage.index, record)
        with self.books.timed("propagate"):
            if dense is not None:
                dense.advance(stage)
            propagation.advance(stage)
        self.books.announce("block_done", stage)

    def redo(self, stage: Stage, record: BlockRecord) -> None:
        """Apply the masks of a finished block; its layers without a mask were not reached then, nor are they now."""
        by_parameter = {layer.parameter: layer for layer in stage.layers}
        reports = {report.parameter: report for report in record.layers}
        if set(reports) != set(record.masks) or not set(reports) <= set(by_parameter):
            raise RelaxPruneError(
                f"the record of block {stage.index} must have a mask and a report for layers of that block only, "
                f"got masks of {sorted(record.masks)} and reports of {sorted(reports)}"
            )
        apply_permutations(self.model, record.permutations)
        self.books.permutations += record.permutations
        for report in record.layers:
            by_parameter[report.parameter].write(record.masks[report.parameter], record.weights.get(report.parameter))
            self.books.finish(stage, report, record.masks[report.parameter])
        self.books.weights |= record.weights
        self.books.tunings += [] if record.tuning is None else [record.tuning]
        self.books.skip([layer for layer in stage.layers if layer.parameter not in reports])
        self.books.carried = record.seconds

    def permute(self, stage: Stage, propagation: Propagation) -> list[Permutation]:
        """Reorder the channels of a stage that is still dense, where that is asked for."""
        if self.permuter is None:
            return []
        with self.books.timed("permute"):
            permutations = self.permuter.permute_stage(stage, propagation)
        self.books.permutations += permutations
        return permutations

    def solve_stage(self, stage: Stage, propagation: Propagation, dense: DenseStream | None) -> BlockRecord:
        """Gather the Grams of a stage, all or part by part, solve and write each of its layers, then tune the block."""
        joint = dense if self.options.correct else None
        with self.books.timed("statistics"):
            parts = self.gathering.parts(stage, propagation)
        solved: dict[str, tuple[Tensor, LayerReport]] = {}
        for part in parts:
            with self.books.timed("statistics"):
                collector = self.gathering.gather(part, propagation, joint)
            while collector.groups:
                solved |= self.solve_group(stage, collector)  # its Gram is freed before the next one is made
        self.books.skip([layer for layer in stage.layers if layer.parameter not in solved])
        masks = {name: mask for name, (mask, _) in solved.items()}
        tuning = None
        in_blocks = stage.index < len(self.survey.blocks.modules)
        movable = any(layer.parameter in masks and tunable(layer) for layer in stage.layers)
        if self.options.tune and dense is not None and in_blocks and movable:
            with self.books.timed("tune"):
                tuning = BlockTuner(stage, masks, propagation, dense).run(self.options.tune)
            self.books.tunings.append(tuning)
        moved = [layer for layer in stage.layers if layer.parameter in solved and self.options.moves]
        weights = {layer.parameter: layer.matrix().cpu().clone() for layer in moved}
        self.books.weights |= weights
        reports = [report for _, report in solved.values()]
        return BlockRecord(masks, reports, self.books.spent(), weights=weights, tuning=tuning)

    def solve_group(self, stage: Stage, collector: StatisticsCollector) -> dict[str, tuple[Tensor, LayerReport]]:
        """Solve and write the layers of the collector's next group, which reads one Gram."""
        with self.books.timed("statistics"):
            layers, gathered = self.gathering.take(collector)  # the float64 sums are gone before anything is solved
        solved: dict[str, tuple[Tensor, LayerReport]] = {}
        if gathered is None:
            return solved
        gram = Gram(gathered.gram)
        for layer in layers:
            self.books.announce("layer_start", stage, layer.name)
            inputs = LayerInputs(gram, gathered, collector.calls[layer.name], layers[0].name)
            with self.books.timed("solve"):
                found = self.mask_solver.solve(layer, inputs, stage.index)
            if found.proof is not None and isinstance(self.recorder, CertificateRecorder):
                with self.books.timed("record"):
                    self.recorder.save_certificate(layer.parameter, *found.proof)
            layer.write(found.mask, found.weight)
            solved[layer.parameter] = (found.mask, found.report)
            self.books.finish(stage, found.report, found.mask)
        return solved
