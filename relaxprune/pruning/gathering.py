"""From a stage to the Grams of its layers: gathered in how many passes, with which weights, shrunk how far."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor

from .layers import PrunableLayer
from .shrinkage import estimate, shrink
from .stages import Propagation, Stage
from .statistics import NormCollector, StatisticsCollector
from .statistics_options import AUTO, StatisticsOptions


@dataclass(frozen=True, eq=False)
class Gathered:
    """What the tokens that some layers read come to.

    Attributes:
        gram: (cols, cols), shrunk.
        tokens: how many count in it.
        token_weight: the mean of their weights.
        shrinkage: λ, how far it is shrunk.
    """

    gram: Tensor
    tokens: int
    token_weight: float
    shrinkage: float


@dataclass(frozen=True)
class Gathering:
    """How statistics are gathered.

    Attributes:
        options: what was asked for.
        of_decoder: names of the layers that read an encoder-decoder model's decoder tokens.
    """

    options: StatisticsOptions = field(default_factory=StatisticsOptions)
    of_decoder: Collection[str] = ()

    def parts(self, stage: Stage, propagation: Propagation) -> list[Stage]:
        """Split a stage into layers that are gathered together, in the order in which they have to be pruned.

        Who reads what is seen in the first batch. The layers that it misses come last, together: they are split by
        what they read like any others, but their inputs are gathered in one pass.
        """
        if self.options.collect == "block" or len(stage.layers) < 2:
            return [stage]
        scout = StatisticsCollector(stage.layers, multiply=False)
        propagation.observe(stage, scout, batches=1)
        reached, missed = scout.in_order()
        return [Stage(stage.index, layers) for layers in (*reached, missed) if layers]

    def gather(self, stage: Stage, propagation: Propagation) -> StatisticsCollector:
        """Put every batch through a stage and return the sums of its layers' inputs."""
        collector = StatisticsCollector(stage.layers, of_decoder=self.of_decoder, halves=self.options.shrinkage == AUTO)
        if self.options.token_cap is not None:
            norms = NormCollector(stage.layers, of_decoder=self.of_decoder)
            propagation.observe(stage, norms)
            collector.limit(norms, self.options.token_cap)
        propagation.observe(stage, collector)
        return collector

    def take(self, collector: StatisticsCollector) -> tuple[tuple[PrunableLayer, ...], Gathered | None]:
        """Remove a collector's first group, and with it its sums.

        Returns:
            Its layers and their Gram, None where no token that counts reached them.
        """
        layers, sums = collector.take()
        if sums is None:
            return layers, None
        wanted = self.options.shrinkage
        share = estimate(sums) if isinstance(wanted, str) else float(wanted)
        return layers, Gathered(shrink(sums.gram(), share), sums.tokens, sums.weight / sums.tokens, share)
