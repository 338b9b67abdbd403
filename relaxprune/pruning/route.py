"""The way through a run's stages: how each gets its inputs once all stages before it are pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from relaxprune.inputs.dense_stream import DenseStream
from relaxprune.inputs.portion import Portion
from relaxprune.inputs.propagation import Propagation, Rerun, block_propagation
from relaxprune.inputs.stages import Agenda, Stage
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.store import store_of

from .plan import Plan
from .tuning.block_tuner import check_replayed


@dataclass(frozen=True, eq=False)
class Step:
    """A stage, with what puts batches through it.

    Attributes:
        stage: its layers.
        pruned: propagation in the model that is being pruned.
        dense: the same in the dense model, None if nothing needs it.
        is_block: whether the stage is a block, and not layers outside of the blocks.
    """

    stage: Stage
    pruned: Propagation
    dense: DenseStream | None
    is_block: bool = False


class Route:
    """Leads a run through its stages.

    Attributes:
        method: how the blocks' inputs are made, as ``PruneReport.propagation`` says it.

    Args:
        plan: what is pruned, and with which options.
        portion: calibration batches.
        agenda: the stages.
        timed: adds the time of a ``with`` block to one of the report's stages.
    """

    def __init__(
        self,
        plan: Plan,
        portion: Portion,
        agenda: Agenda,
        timed: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.method = "rerun"
        self._plan, self._portion, self._agenda, self._timed = plan, portion, agenda, timed
        self._options = plan.request.options
        self._streams: list[DenseStream] = []
        if self._options.tune and agenda.before:  # refused before anything is pruned
            check_replayed(self._options.tune, self._blocks(portion.head(1))[0])
        if agenda.before or agenda.after:
            self._refuse_dense_stream("layers outside of the blocks")

    def steps(self) -> Iterator[Step]:
        """Yield the layers before the blocks, the blocks, and the layers after them; each is to be pruned at once."""
        agenda, rerun = self._agenda, Rerun(self._plan.model, self._portion)
        outside = self._dense(rerun) if agenda.before or agenda.after else None
        yield from self._begun([Step(stage, rerun, outside) for stage in agenda.before])
        if any(stage.layers for stage in agenda.blocks):
            # Only now: the blocks' inputs come through the layers before them, which are pruned by now.
            with self._timed("capture"):
                pruned, self.method = self._blocks(self._portion)
                inside = self._dense(pruned, outside if agenda.before else None)
            check_replayed(self._options.tune, pruned)
            if isinstance(pruned, Rerun):
                self._refuse_dense_stream("blocks that cannot be replayed one by one")
            stages = pruned.ordered(agenda.blocks)
            yield from self._begun([Step(stage, pruned, inside, is_block=True) for stage in stages])
        yield from self._begun([Step(stage, rerun, outside) for stage in agenda.after])

    def propagate(self, step: Step) -> None:
        """Make the inputs of the next stage, now that this one is pruned."""
        if step.dense is not None:
            step.dense.advance(step.stage)
        step.pruned.advance(step.stage)

    def _refuse_dense_stream(self, what: str) -> None:
        """Raise RelaxPruneError if the whole dense model would have to run beside one whose blocks travel."""
        if self._options.correct and store_of(self._plan.model).travels:
            raise RelaxPruneError(
                f"correct runs the whole dense model beside the pruned one if there are {what}, got a model whose "
                "blocks travel: leave out correct, or load the model whole"
            )

    def _blocks(self, portion: Portion) -> tuple[Propagation, str]:
        """Return what makes the blocks' inputs, and how."""
        return block_propagation(self._plan.model, self._plan.blocks, self._plan.weights, portion)

    def _begun(self, steps: Sequence[Step]) -> Iterator[Step]:
        """Yield steps, each while its block is there, its dense weights kept before anything is written to them."""
        store = store_of(self._plan.model)
        for step in steps:
            with store.resident(step.stage.index):
                for stream in self._streams:
                    stream.keep(step.stage)
                yield step

    def _dense(self, pruned: Propagation, before: DenseStream | None = None) -> DenseStream | None:
        """Return the dense model's stream next to a propagation, if anything needs it.

        Args:
            pruned: propagation in the model that is being pruned.
            before: the stream through layers that are pruned by now and come before what ``pruned`` goes through.
        """
        if self._options.correct:
            if before is None:
                dense = pruned.fork()
            else:
                with before.dense():
                    dense, _ = self._blocks(self._portion)
                if isinstance(dense, Rerun):
                    return before  # it runs the same, and keeps the dense weights of the layers before too
        elif self._options.tune and not isinstance(pruned, Rerun):
            dense = pruned  # the dense block's outputs on the pruned model's inputs
        else:
            return None
        self._streams.append(DenseStream(dense, follows=self._options.correct > 0))
        return self._streams[-1]
