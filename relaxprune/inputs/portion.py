"""Which calibration batches this process puts through the model; ranks that share a run have some each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from relaxprune.ranks.ranks import ALONE, Ranks
from relaxprune.ranks.sharing import even_part
from relaxprune.residency.states import HERE, Shelf

from .batches import Batch


@dataclass(frozen=True, eq=False)
class Portion:
    """Batches in a row out of all those of a run.

    Attributes:
        batches: at least one.
        first: number of the first one.
        counted: False for a rank that is left without batches: it follows the model with one that is another rank's,
            and adds nothing to sums.
        ranks: those that have the others.
        shelf: where hidden states are kept between two blocks.
    """

    batches: Sequence[Batch]
    first: int = 0
    counted: bool = True
    ranks: Ranks = ALONE
    shelf: Shelf = HERE

    @classmethod
    def of(cls, batches: Sequence[Batch], ranks: Ranks, shelf: Shelf = HERE) -> Portion:
        """Return the share of this rank in the batches of a run: what comes first has rank 0, and so on."""
        own = even_part(len(batches), ranks.rank, ranks.world)
        if own.start == own.stop:
            return cls(batches[:1], 0, False, ranks, shelf)
        return cls(batches[own], own.start, True, ranks, shelf)

    def head(self, count: int | None) -> Portion:
        """Return the first of these batches, or all for None."""
        return self if count is None else replace(self, batches=self.batches[:count])

    def numbered(self) -> Iterator[tuple[int, Batch]]:
        """Yield the batches with their numbers, as long as no other rank has failed."""
        for number, batch in enumerate(self.batches, self.first):
            self.ranks.check()
            yield number, batch
