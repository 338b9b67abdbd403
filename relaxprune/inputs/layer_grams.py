"""From a stage to the Grams of its layers: gathered in how many passes, with which weights, shrunk how far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from relaxprune.options.statistics_options import AUTO, StatisticsOptions
from relaxprune.problems.errors import RelaxPruneError

from .batches import Batch
from .dense_stream import DenseStream
from .gram_accumulator import GramAccumulator
from .joint_statistics import JointAccumulator, JointCollector
from .layer_listener import LayerListener
from .parts import HALVES, ONE_PART, Parts, kinds_of
from .propagation import Propagation, observe
from .row_statistics import RowCollector, TokenWeights
from .shrinkage import ShrinkageChoice, estimate, shrink
from .stages import Stage
from .statistics import NormCollector, StatisticsCollector
from .streams import Streams


@dataclass(frozen=True, eq=False)
class LayerGram:
    """The statistics of the tokens that some layers read.

    Attributes:
        gram: (cols, cols), shrunk.
        tokens: how many count in it.
        token_weight: the mean of their weights.
        shrinkage: λ, how far it is shrunk.
        cross: (cols, cols) E[x x̃ᵀ], x̃ the inputs of the Gram and x those that outputs should be right for, shrunk
            like it; None if not asked for, or if the dense model has other tokens.
        dense_gram: (cols, cols) E[x xᵀ], shrunk like it; None like the one before.
        choice: how λ was chosen among several, None if it was not.
    """

    gram: Tensor
    tokens: int
    token_weight: float
    shrinkage: float
    cross: Tensor | None = None
    dense_gram: Tensor | None = None
    choice: ShrinkageChoice | None = None


@dataclass(frozen=True)
class GramMaker:
    """Makes the Grams of stages.

    Attributes:
        options: what was asked for.
        streams: which tokens, and so which padding, each layer reads.
        correct: share λ of the way from the pruned model's inputs to the dense ones, where both are gathered.
        parts: which tokens are summed apart.
    """

    options: StatisticsOptions = field(default_factory=StatisticsOptions)
    streams: Streams = field(default_factory=Streams)
    correct: float = 1.0
    parts: Parts = ONE_PART

    def split(self, stage: Stage, propagation: Propagation) -> list[Stage]:
        """Split a stage into layers that are gathered together, in the order in which they have to be pruned.

        The first batch shows which layers share inputs. The layers that it misses come last, gathered in one pass.
        """
        if self.options.collect == "block" or len(stage.layers) < 2:
            return [stage]
        scout = LayerListener(stage.layers)
        observe(propagation, stage, scout, batches=1)
        reached, missed = scout.in_order()
        # The first rank has the first batch.
        names = propagation.portion.ranks.broadcast([[layer.name for layer in layers] for layers in (*reached, missed)])
        by_name = {layer.name: layer for layer in stage.layers}
        return [Stage(stage.index, tuple(by_name[name] for name in members)) for members in names if members]

    def without_selection(self) -> GramMaker:
        """Return one that takes the middle candidate for the shrinkage, of this where one is chosen."""
        if not self.options.select:
            return self
        return replace(self, options=self.options.without_selection(), parts=ONE_PART)

    def gather(
        self,
        stage: Stage,
        propagation: Propagation,
        dense: DenseStream | None = None,
        weights: TokenWeights | None = None,
    ) -> StatisticsCollector:
        """Put every batch through a stage and return the sums of its layers' inputs, joint with ``dense`` if given.

        The sums are over the batches of all ranks. With ``weights`` groups of rows have sums of their own
        (``RowCollector``); not together with ``dense``.
        """
        collector = self._collector(stage, dense is not None, weights)
        if self.options.token_cap is not None:
            norms = NormCollector(stage.layers, streams=self.streams)
            observe(propagation, stage, norms)
            norms.unite(propagation.portion)
            collector.limit(norms, self.options.token_cap)
        if dense is not None and isinstance(collector, JointCollector):
            collector.observe(stage, propagation, dense)
        else:
            observe(propagation, stage, collector)
        collector.unite(propagation.portion)
        return collector

    def _collector(self, stage: Stage, joint: bool, weights: TokenWeights | None) -> StatisticsCollector:
        """Return what sums a stage's inputs."""
        if weights is not None:
            return RowCollector(stage.layers, weights, streams=self.streams, parts=self.parts)
        kind = JointCollector if joint else StatisticsCollector
        return kind(stage.layers, streams=self.streams, parts=self.parts)

    def made(self, sums: GramAccumulator, choice: ShrinkageChoice | None = None) -> LayerGram:
        """Return the Gram of some layers, shrunk as it was chosen, or else as the options say.

        Args:
            sums: of tokens that reached them, at least one.
            choice: how far, if that was chosen for them.

        Raises:
            RelaxPruneError: neither was decided.
        """
        share = self._share(sums) if choice is None else choice.share
        joint = sums.joint(self.correct) if isinstance(sums, JointAccumulator) else None
        return LayerGram(
            shrink(sums.gram(), share),
            sums.tokens,
            sums.weight / sums.tokens,
            share,
            cross=None if joint is None else shrink(joint[0], share),
            dense_gram=None if joint is None else shrink(joint[1], share),
            choice=choice,
        )

    def _share(self, sums: GramAccumulator) -> float:
        """Return how far the Gram of some layers is shrunk, as the options say."""
        wanted = self.options.shrinkage
        if wanted is None:
            raise RelaxPruneError("shrinkage must be decided before a Gram is made, got None: give a number")
        return estimate(sums) if isinstance(wanted, str) else wanted


def summed_parts(options: StatisticsOptions, batches: Sequence[Batch], kinds: Sequence[str] | None) -> Parts:
    """Return in which parts the Grams of a run are summed.

    Args:
        options: what was asked for.
        batches: calibration batches.
        kinds: the kind of each of their windows; None for one kind.

    Raises:
        RelaxPruneError: there are not as many kinds as windows.
    """
    if kinds is not None:
        kinds_of(batches, kinds)
    if options.select:
        return Parts.to_hold_out(batches, kinds)
    return HALVES if options.shrinkage == AUTO else ONE_PART
