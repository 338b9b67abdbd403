"""Which text is held out, to see when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from relaxprune.inputs.batches import Batch, split_windows
from relaxprune.problems.errors import RelaxPruneError

_HELD_OUT = 4  # every fourth one; calibration text of several kinds is ordered so that these hold all of them


def held_out(numbers: Sequence[int]) -> list[int]:
    """Return every fourth of some numbers, from the second one on."""
    return list(numbers[1::_HELD_OUT])


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows that a whole model is changed on.

    Attributes:
        batches: one window each, or a batch whose windows cannot be told apart.
        held_out: the numbers of those that are held out.
        decoder: whether the tokens of an encoder-decoder's decoder are what is predicted.
    """

    batches: list[Batch]
    held_out: list[int]
    decoder: bool = False

    @classmethod
    def of(cls, batches: Sequence[Batch], decoder: bool = False) -> Windows:
        """Return the windows of some batches that have a token which counts; every fourth one is held out.

        Raises:
            RelaxPruneError: there are fewer than two windows, so that none can be held out.
        """
        windows = [window for batch in batches for window in split_windows(batch) if _counts(window, decoder)]
        check_windows(len(windows))
        return cls(windows, held_out(range(len(windows))), decoder)

    @property
    def tuned(self) -> list[int]:
        """The numbers of the windows that are not held out."""
        apart = set(self.held_out)
        return [number for number in range(len(self.batches)) if number not in apart]


def check_windows(count: int, what: str = "refine") -> None:
    """Raise RelaxPruneError if there are too few windows to hold one out, for what was asked for."""
    if count < 2:
        raise RelaxPruneError(f"{what} needs at least 2 windows, for one is held out, got {count}: give more")


def counting(window: Batch, decoder: bool) -> Tensor | None:
    """Return which of a window's tokens that are predicted count, (batch, tokens) bool; None if all do."""
    return window.decoder_kept if decoder else window.kept


def _counts(window: Batch, decoder: bool) -> bool:
    """Return whether a window has a token that counts."""
    kept = counting(window, decoder)
    return kept is None or bool(kept.any())
