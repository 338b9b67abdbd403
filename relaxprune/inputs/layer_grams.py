"""From a stage to the Grams of its layers: gathered in how many passes, with which weights, shrunk how far."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from relaxprune.models.layers import PrunableLayer
from relaxprune.options.statistics_options import AUTO, StatisticsOptions

from .dense_stream import DenseStream
from .joint_statistics import JointAccumulator, JointCollector
from .layer_listener import LayerListener
from .propagation import Propagation, observe
from .shrinkage import estimate, shrink
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
    """

    gram: Tensor
    tokens: int
    token_weight: float
    shrinkage: float
    cross: Tensor | None = None
    dense_gram: Tensor | None = None


@dataclass(frozen=True)
class GramMaker:
    """Makes the Grams of stages.

    Attributes:
        options: what was asked for.
        streams: which tokens, and so which padding, each layer reads.
        correct: share λ of the way from the pruned model's inputs to the dense ones, where both are gathered.
    """

    options: StatisticsOptions = field(default_factory=StatisticsOptions)
    streams: Streams = field(default_factory=Streams)
    correct: float = 1.0

    def parts(self, stage: Stage, propagation: Propagation) -> list[Stage]:
        """Split a stage into layers that are gathered together, in the order in which they have to be pruned.

        The first batch shows which layers share inputs. The layers that it misses come last, gathered in one pass.
        """
        if self.options.collect == "block" or len(stage.layers) < 2:
            return [stage]
        scout = LayerListener(stage.layers)
        observe(propagation, stage, scout, batches=1)
        reached, missed = scout.in_order()
        return [Stage(stage.index, layers) for layers in (*reached, missed) if layers]

    def gather(self, stage: Stage, propagation: Propagation, dense: DenseStream | None = None) -> StatisticsCollector:
        """Put every batch through a stage and return the sums of its layers' inputs, joint with ``dense`` if given."""
        kind = StatisticsCollector if dense is None else JointCollector
        collector = kind(stage.layers, streams=self.streams, halves=self.options.shrinkage == AUTO)
        if self.options.token_cap is not None:
            norms = NormCollector(stage.layers, streams=self.streams)
            observe(propagation, stage, norms)
            collector.limit(norms, self.options.token_cap)
        if dense is not None and isinstance(collector, JointCollector):
            collector.observe(stage, propagation, dense)
        else:
            observe(propagation, stage, collector)
        return collector

    def take(self, collector: StatisticsCollector) -> tuple[tuple[PrunableLayer, ...], LayerGram | None]:
        """Remove a collector's first group, and with it its sums.

        Returns:
            Its layers and their Gram, None if no token that counts reached them.
        """
        layers, sums = collector.take()
        if sums is None:
            return layers, None
        wanted = self.options.shrinkage
        share = estimate(sums) if isinstance(wanted, str) else wanted or 0.0
        joint = sums.joint(self.correct) if isinstance(sums, JointAccumulator) else None
        beside = {} if joint is None else {"cross": shrink(joint[0], share), "dense_gram": shrink(joint[1], share)}
        return layers, LayerGram(shrink(sums.gram(), share), sums.tokens, sums.weight / sums.tokens, share, **beside)
