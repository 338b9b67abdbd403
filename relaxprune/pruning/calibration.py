"""The calibration text of a run as it is given, read, checked and divided among ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from relaxprune.inputs.batches import Batch, count_windows, read_batches, without_first
from relaxprune.inputs.layer_grams import summed_parts
from relaxprune.inputs.parts import Parts
from relaxprune.inputs.portion import Portion
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.ranks.ranks import ALONE, Ranks
from relaxprune.residency.states import HERE, Shelf

from .request import PruneRequest


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration text, and how it goes through the model.

    Attributes:
        batches: as ``prune_model`` takes them, read once.
        kinds: the kind of each window, in the order of the batches; None if all are of one.
        refine_batches: what only changes of the whole model read, besides the others; read once.
        ranks: put a part of it through the model each.
        shelf: where hidden states are kept between two blocks.
    """

    batches: Iterable[Any]
    kinds: Sequence[str] | None = None
    refine_batches: Iterable[Any] = ()
    ranks: Ranks = ALONE
    shelf: Shelf = HERE

    def read(self, request: PruneRequest) -> tuple[list[Batch], Parts, list[Batch]]:
        """Return the batches, the parts in which their Grams are summed, and what only the whole model's read.

        Raises:
            RelaxPruneError: they cannot be right, or are too few for what is asked.
        """
        statistics = request.options.statistics
        read = without_first(read_batches(self.batches), statistics.skip_tokens)
        more = self._read_more(request)
        request.check_batches(len(read), count_windows([*read, *more]))
        parts = summed_parts(statistics, read, self.kinds)
        return parts.marked(read), parts, more

    def portion(self, read: Sequence[Batch], request: PruneRequest) -> Portion:
        """Return what this process puts through the model: all, if every rank needs that (``whole_text``)."""
        if request.options.whole_text:
            return Portion(read, shelf=self.shelf)
        return Portion.of(read, self.ranks, self.shelf)

    def _read_more(self, request: PruneRequest) -> list[Batch]:
        """Return the batches that only ``refine`` and ``reselect`` read."""
        given = list(self.refine_batches)
        if not given:
            return []
        if not request.options.whole_model:
            raise RelaxPruneError(f"refine_batches are for options with refine, got {len(given)} and refine=0")
        return without_first(read_batches(given), request.options.statistics.skip_tokens)
