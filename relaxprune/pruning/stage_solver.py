"""The layers of a stage, solved: one after the other, or each by one of the ranks that share a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.inputs.layer_grams import GramMaker, LayerGram
from relaxprune.inputs.output_check import OutputCheck
from relaxprune.inputs.shrinkage import ShrinkageChoice
from relaxprune.inputs.stages import Stage
from relaxprune.inputs.statistics import StatisticsCollector
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems import Gram
from relaxprune.ranks.ranks import Ranks
from relaxprune.ranks.sharing import layer_cost

from .mask_solver import LayerInputs, MaskSolver, SolvedLayer
from .objectives.following import DenseLoss
from .objectives.terms import PLAIN
from .outcome import Outcome
from .selecting import ShrinkageSelector
from .solved_parcel import opened, parcel


@dataclass(frozen=True, eq=False)
class _Job:
    """A layer to solve, and what it reads."""

    layer: PrunableLayer
    inputs: LayerInputs

    @property
    def cost(self) -> float:
        """What it is thought to cost."""
        return layer_cost(self.layer.shape)


@dataclass(frozen=True, eq=False)
class StageSolver:
    """Solves the layers of one stage after the other.

    Attributes:
        gram_maker: makes Grams of sums.
        mask_solver: solves a layer.
        selector: chooses how far Grams are shrunk, None if that is decided.
        check: knows the layers that must not be pruned.
        outcome: is told of layers that are begun, and takes the time.
        ranks: share the layers.
        loss: knows what layers minimise beside their Grams, None for nothing.
    """

    gram_maker: GramMaker
    mask_solver: MaskSolver
    selector: ShrinkageSelector | None
    check: OutputCheck
    outcome: Outcome
    ranks: Ranks
    loss: DenseLoss | None = None

    def solve(self, sums: StatisticsCollector, stage: Stage) -> Iterator[SolvedLayer]:
        """Yield the layers of all groups that read one Gram, solved; all of them on every rank, in the same order.

        A process that is alone has one Gram at a time; ranks make all of them first, and divide the layers.
        """
        jobs = self._jobs(sums)
        rounds = ([job] for job in jobs) if self.ranks.alone else [list(jobs)]
        for some in rounds:
            yield from self._round(some, stage)

    def _round(self, jobs: Sequence[_Job], stage: Stage) -> Iterator[SolvedLayer]:
        """Solve some layers: each on one rank, but those that one rank alone would take longest for on all of them."""
        for job in jobs:
            self.outcome.announce("layer_start", stage, job.layer.name)
        large = [number for number, job in enumerate(jobs) if self._is_large(job, jobs)]
        with self.outcome.timed("solve"):
            together = self.mask_solver.together()
            solved = {number: self._solved(together, jobs[number], stage) for number in large}
            costs = [0.0 if number in solved else job.cost for number, job in enumerate(jobs)]
            mine = {*self.ranks.shares(costs)[self.ranks.rank]} - solved.keys()
            own = {number: self._solved(self.mask_solver, jobs[number], stage) for number in sorted(mine)}
        if not self.ranks.alone:
            with self.outcome.timed("exchange"):
                told = self.ranks.exchange({str(number): parcel(layer) for number, layer in own.items()})
            others = {int(number): found for rank in told for number, found in rank.items()}
            for number in others.keys() - own.keys():
                solved[number] = opened(others[number], jobs[number].layer, jobs[number].inputs, self.mask_solver)
        solved |= own
        yield from (solved.pop(number) for number in range(len(jobs)))

    def _is_large(self, job: _Job, jobs: Sequence[_Job]) -> bool:
        """Return whether a layer is more than a rank's share of the work, and can be divided."""
        if self.ranks.alone or job.cost * self.ranks.world <= sum(other.cost for other in jobs):
            return False
        return self.mask_solver.bands(job.layer, job.inputs) > 1

    def _solved(self, mask_solver: MaskSolver, job: _Job, stage: Stage) -> SolvedLayer:
        """Solve a layer here."""
        return mask_solver.solve(job.layer, job.inputs, stage.index)

    def _jobs(self, sums: StatisticsCollector) -> Iterator[_Job]:
        """Yield the layers of all groups with their Grams; float64 sums are gone before anything is solved."""
        chosen = {} if self.ranks.alone else self._chosen(sums)
        while sums.groups:
            layers, read = self._take(sums, chosen)
            if read is not None:
                gram = Gram(read.gram)
                for layer in self._wanted(layers):
                    terms = PLAIN if self.loss is None else self.loss.terms(layer, read, sums)
                    yield _Job(layer, LayerInputs(gram, read, sums.calls[layer.name], layers[0].name, terms))

    def _take(
        self, sums: StatisticsCollector, chosen: dict[str, ShrinkageChoice]
    ) -> tuple[tuple[PrunableLayer, ...], LayerGram | None]:
        """Return the layers of the next group and their Gram, None if no token that counts reached them."""
        layers, own = sums.take()
        if own is None:
            return layers, None
        choice = chosen[layers[0].name] if layers[0].name in chosen else self._choice(layers, own)
        with self.outcome.timed("statistics"):
            return layers, self.gram_maker.made(own, choice)

    def _choice(self, layers: Sequence[PrunableLayer], own: GramAccumulator) -> ShrinkageChoice | None:
        """Choose how far the Gram of some layers is shrunk, None if that is decided."""
        if self.selector is None:
            return None
        with self.outcome.timed("select"):
            return self.selector.choose(self._wanted(layers), own)

    def _chosen(self, sums: StatisticsCollector) -> dict[str, ShrinkageChoice]:
        """Choose how far all Grams are shrunk, each on one rank, by the names of their first layers."""
        if self.selector is None:
            return {}
        groups = [group for group in sums.groups if group.accumulator is not None]
        costs = [sum(layer_cost(layer.shape) for layer in group.layers) for group in groups]
        own: dict[str, Any] = {}
        for number in self.ranks.shares(costs)[self.ranks.rank]:
            layers, accumulator = groups[number].layers, groups[number].accumulator
            choice = None if accumulator is None else self._choice(layers, accumulator)
            own[layers[0].name] = None if choice is None else asdict(choice)
        told = [pair for rank in self.ranks.exchange(own) for pair in rank.items()]
        return {name: ShrinkageChoice.of(facts) for name, facts in told}

    def _wanted(self, layers: Sequence[PrunableLayer]) -> list[PrunableLayer]:
        """Return those of some layers that may be pruned."""
        return [layer for layer in layers if layer.name not in self.check.failed]
