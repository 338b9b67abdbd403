"""What a run would take, from the configuration of its model alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from relaxprune.costs.calibration import measured_rates
from relaxprune.costs.formula import GramShape, RunShape, TextPass
from relaxprune.costs.gram_work import adding_work, making_work
from relaxprune.costs.machine import Machine
from relaxprune.costs.memory import RunBytes, TokenCounts, run_bytes
from relaxprune.costs.residency import Need, choose, needs
from relaxprune.costs.work import NOTHING, Rates, Work
from relaxprune.models.blocks import NO_BLOCKS
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.target import Target
from relaxprune.problems.checks import whole_number
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.plan import Plan
from relaxprune.pruning.request import PruneRequest
from relaxprune.pruning.sharing.counts import ITERATIONS, LEVELS, ROWS
from relaxprune.solvers.base import JUDGED_MATRICES
from relaxprune.solvers.frank_wolfe.fw import FrankWolfe
from relaxprune.support.memory import resident_bytes

from .forecast import Forecast
from .meta_pass import MetaPass, meta_pass
from .solver_work import SolverWork

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """The shape of the calibration text.

    Attributes:
        windows: how many there are.
        length: tokens of each.
        at_once: windows that go through the model together.
        sampled: windows that the model writes itself.
        kinds: of text among them.
        refining: windows that the model writes in addition, for ``refine`` alone.
    """

    windows: int
    length: int
    at_once: int
    sampled: int = 0
    kinds: int = 1
    refining: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            RelaxPruneError: naming the number.
        """
        for name in ("windows", "length", "at_once"):
            whole_number(name, getattr(self, name), 1)
        for name in ("sampled", "refining"):
            whole_number(name, getattr(self, name), 0)

    @property
    def tokens(self) -> TokenCounts:
        """How many tokens that are."""
        at_once = min(self.at_once, self.windows) * self.length
        every, refining = self.windows * self.length, self.refining * self.length
        return TokenCounts(all=every, at_once=at_once, kinds=self.kinds, refining=refining)

    @property
    def batches(self) -> int:
        """How many times windows go through the model."""
        return -(-self.windows // self.at_once)


def forecast_run(
    plan: Plan,
    text: TextShape,
    machine: Machine | None = None,
    clock: Clock = time.perf_counter,
    whole: str | None = None,
) -> Forecast:
    """Predict what a run takes: operations, bytes and seconds by stage, and the memory of every residency.

    Args:
        plan: of a model on the meta device, as ``make_plan(…, values=False)`` makes it.
        text: the shape of its calibration text.
        machine: what it runs on; this process's processor if None.
        clock: seconds, for what is measured.
        whole: why blocks cannot travel, so that weights stay on the device; None if nothing is known against it.

    Raises:
        RelaxPruneError: a number out of range.
    """
    machine = machine or Machine()
    process = resident_bytes() or 0
    found = meta_pass(plan.model, plan.weights, plan.blocks, min(text.at_once, text.windows), text.length)
    solver = SolverWork(plan.request, clock)
    run = _run_shape(plan, text, found, solver)
    work, sent = run.stage_work(), run.network(machine.devices)
    rates, slowness = machine.rates, {}
    if rates is None:
        rates = measured_rates(run.text.dtype, clock)
        slowness = {"solve": _slowness(run, solver, rates)} if solver.known else {}
    memory = _memory(plan, text, solver).of_rank(machine.devices, every_batch=plan.request.options.whole_text)
    if not plan.blocks.modules:
        whole = "the model has no list of blocks"
    residencies = needs(memory, one_memory=machine.host_memory is None, whole=whole is not None)
    chosen, misfit = _chosen(residencies, machine)
    return Forecast(
        plan=plan,
        machine=machine,
        rates=rates,
        measured=machine.rates is None,
        work=work,
        products=_products(work, run),
        seconds=run.seconds(rates, machine, slowness),
        sent=sent,
        memory=memory,
        residencies=residencies,
        chosen=chosen,
        process_bytes=process,
        notes=(*_notes(plan, found, whole), *misfit),
    )


def _memory(plan: Plan, text: TextShape, solver: SolverWork) -> RunBytes:
    """Return the bytes of the run's parts, with what its solver holds."""
    held = {"matrices": JUDGED_MATRICES + solver.whole.matrices} if solver.known else {}
    tokens = plan.request.counted(text.tokens)
    return run_bytes(plan.model, plan.blocks, plan.layers, plan.request.options, tokens, **held)


def _chosen(residencies: list[Need], machine: Machine) -> tuple[Need | None, tuple[str, ...]]:
    """Return the residency that fits; if there is none, why."""
    try:
        return choose(residencies, machine.device_memory, machine.host_memory), ()
    except RelaxPruneError as error:
        return None, (str(error),)


def _run_shape(plan: Plan, text: TextShape, found: MetaPass, solver: SolverWork) -> RunShape:
    """Return the run, as far as its cost goes."""
    dtype = next(plan.model.parameters()).dtype
    grams = tuple(
        GramShape(group.layers[0].shape[1], group.tokens, plan.blocks.index_of(group.layers[0]))
        for group in found.groups
    )
    reruns = len(grams) if plan.blocks is NO_BLOCKS else 0
    passing = TextPass(blocks=found.blocks, outside=found.outside, batches=text.batches, dtype=dtype, reruns=reruns)
    shapes = {(layer.rows, layer.cols) for layer in plan.layers}
    extra = {"sample": _sampling(plan, text, found), "allocate": _allocating(plan, passing, grams)}
    return RunShape(
        layers=tuple(plan.layers),
        grams=grams,
        text=passing,
        options=plan.request.options,
        solve={shape: solver.of(*shape) if solver.known else NOTHING for shape in shapes},
        extra={stage: done for stage, done in extra.items() if done != NOTHING},
        more=text.refining / text.windows,
    )


def _sampling(plan: Plan, text: TextShape, found: MetaPass) -> Work:
    """Return the work of the windows that the model writes: token by token, each reads all weights."""
    written = text.sampled + text.refining
    if not written:
        return NOTHING
    whole = found.blocks + found.outside
    share = written * text.length / text.tokens.at_once
    once = Work(bytes=plan.memory.model, launches=whole.launches)
    rounds = bool(text.sampled) + bool(text.refining)
    return (
        share * Work(flops=whole.flops, half_flops=whole.half_flops, bytes=whole.bytes)
        + float(rounds * text.length) * once
    )


def _allocating(plan: Plan, text: TextPass, grams: tuple[GramShape, ...]) -> Work:
    """Return the work of sharing the sparsity by a pass over the dense model."""
    sharing = plan.request.target.sharing
    if not sharing.measures:
        return NOTHING
    adding = (text.batches * adding_work(gram.cols, gram.tokens, text.dtype) + making_work(gram.cols) for gram in grams)
    found = text.passes(3.0) + sum(adding, NOTHING)  # recorded, summed and propagated, in the dense model
    if sharing.kind == "model":
        quick = SolverWork(_quick(plan))
        found += 3.0 * (text.blocks + text.outside)  # gradients of one batch
        curves = (len(LEVELS) * quick.of(min(ROWS, layer.rows), layer.cols) for layer in plan.layers)
        found += sum(curves, NOTHING)
    return found


def _quick(plan: Plan) -> PruneRequest:
    """Return the request of the short solves that measure a layer's error at several sparsities."""
    options = PruneOptions(max_iterations=ITERATIONS, polish=None)
    return PruneRequest.of(Target(sparsity=plan.request.target.sparsity), FrankWolfe(effort="fast"), options)


def _slowness(run: RunShape, solver: SolverWork, rates: Rates) -> float:
    """Return what solving takes of what the rates give, on the shape that most of the work is in."""
    rows, cols = max(run.shapes, key=lambda shape: run.shapes[shape] * rates.seconds(run.solve[shape]))
    return solver.slowness(rows, cols, rates)


def _products(work: Mapping[str, Work], run: RunShape) -> dict[str, float]:
    """Return every stage's operations in products: of all weights of the layers with their Grams, once."""
    one = sum(2.0 * layer.rows * layer.cols**2 for layer in run.layers)
    return {stage: (done.flops + done.half_flops) / one for stage, done in work.items()}


def _notes(plan: Plan, found: MetaPass, whole: str | None) -> tuple[str, ...]:
    """Return what is not in the numbers, and why weights stay on the device if they cannot travel."""
    options, solver = plan.request.options, plan.request.solver
    notes = [] if whole is None else [f"weights stay on the device: {whole}"]
    if found.unknown:
        notes.append(
            f"the model could not be gone through without values ({found.unknown}): two operations are "
            "counted for every weight and token, and a Gram for every layer"
        )
    if solver.planned_iterations(options.max_iterations) is None:
        notes.append(f"time of solving not predicted: solver {solver.name!r} does not know how long it searches")
    if options.certify is not None:
        notes.append(f"time of certificates by {options.certify!r} not predicted")
    if options.reselect:
        notes.append("of --reselect the passes of text are predicted, and the time of choosing masks is not")
    if options.permute:
        notes.append("time of --permute not predicted")
    if options.objective.grams:
        notes.append("time of the Grams of groups of rows not predicted")
    if options.statistics.select:
        notes.append("time of --select not predicted")
    return tuple(notes)
