"""The parts in which a run's Grams are summed, so that some text can be held out of them: kinds, and folds of batches.

A token's part is the kind of its window, and a fold of it: the batches that hold a kind go to its folds in turn. A
batch of one kind is counted whole; in others a mask per kind says whose tokens are whose, as one does for padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError

from .batches import Batch, window_count, with_marks

_FOLDS = 4  # of text of one kind
_FOLDS_OF_KINDS = 2  # each kind is in both, and held out whole as well


@dataclass(frozen=True)
class HeldOut:
    """Text that is left out of a Gram, to judge by it.

    Attributes:
        name: what it is, for reports.
        parts: its parts.
        tests: the parts of each of its kinds, which weigh alike in a judgement.
        whole_kind: whether no text of its kind is left in the Gram.
    """

    name: str
    parts: frozenset[int]
    tests: tuple[frozenset[int], ...]
    whole_kind: bool = False


@dataclass(frozen=True)
class Parts:
    """Which tokens are summed apart.

    Attributes:
        folds: how many every kind has.
        names: the kinds.
        windows: batch -> the part of each of its windows, which is kind · folds + fold; empty for one kind, of which
            every batch belongs to the fold of its number modulo ``folds``.
    """

    folds: int = 1
    names: tuple[str, ...] = ("",)
    windows: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def to_hold_out(cls, batches: Sequence[Batch], kinds: Sequence[str] | None) -> Parts:
        """Return parts of which folds of batches, and each of several kinds, can be held out.

        Args:
            batches: calibration batches.
            kinds: the kind of each window, in the order of the batches; None for one kind.
        """
        labels = kinds_of(batches, kinds)
        names = tuple(sorted({kind for batch in labels for kind in batch}))
        if len(names) < 2:
            return cls(min(_FOLDS, len(batches)))
        turns, windows = dict.fromkeys(names, 0), []
        for batch in labels:
            part = {name: names.index(name) * _FOLDS_OF_KINDS + turns[name] % _FOLDS_OF_KINDS for name in {*batch}}
            windows.append(tuple(part[name] for name in batch))
            turns |= {name: turns[name] + 1 for name in part}
        return cls(_FOLDS_OF_KINDS, names, tuple(windows))

    @property
    def count(self) -> int:
        """Number of parts."""
        return self.folds * len(self.names)

    def marked(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return batches of which those with several kinds mark all tokens, so that their layers are told apart.

        Raises:
            RelaxPruneError: one has no token ids, so which tokens its windows have is not known.
        """
        why = "select tells the kinds in a batch apart"
        pairs = enumerate(batches)
        return [
            with_marks(batch, number, why) if len({*self._labels(number)}) > 1 else batch for number, batch in pairs
        ]

    def of(self, batch: int, kept: Tensor | None, layer: str) -> Iterator[tuple[int, Tensor | None]]:
        """Yield the parts of a batch, each with the (windows, tokens) mask of its tokens, None for all.

        Args:
            batch: its number.
            kept: (windows, tokens) bool, False for padding, as the layer reads it; None if all tokens count.
            layer: name for the error message.

        Raises:
            RelaxPruneError: the batch holds several kinds, and which of the layer's inputs are whose is not known.
        """
        labels = self._labels(batch)
        if len({*labels}) == 1:
            yield labels[0], kept
            return
        if kept is None or len(kept) != len(labels):
            raise RelaxPruneError(
                f"layer {layer!r} reads other tokens than those of its windows, so that kinds cannot be told apart in "
                f"batch {batch}, which holds several; give batches of one kind, or exclude this layer"
            )
        of_windows = torch.tensor(labels, device=kept.device)
        for part in sorted({*labels}):
            own = kept & (of_windows == part).unsqueeze(1)
            if bool(own.any()):
                yield part, own

    def of_tokens(self, batch: int, windows: Tensor | None) -> Iterator[tuple[int, Tensor | None]]:
        """Yield the parts of some tokens of a batch, each with the (tokens,) mask of those in it, None for all.

        Args:
            batch: its number.
            windows: (tokens,) the window of each; None if that does not matter, for the batch is of one kind.
        """
        labels = self._labels(batch)
        if windows is None or len({*labels}) == 1:
            yield labels[0], None
            return
        of_tokens = torch.tensor(labels, device=windows.device)[windows]
        for part in of_tokens.unique().tolist():
            yield part, of_tokens == part

    def _labels(self, batch: int) -> tuple[int, ...]:
        """Return the part of each window of a batch, or that of all."""
        return self.windows[batch] if self.windows else (batch % self.folds,)

    def held_out(self) -> list[HeldOut]:
        """Return what can be held out: every fold, then every kind if there are several."""
        kinds, folds = range(len(self.names)), range(self.folds)
        cells = {(kind, fold): kind * self.folds + fold for kind in kinds for fold in folds}
        found = []
        for fold in folds:
            tests = tuple(frozenset({cells[kind, fold]}) for kind in kinds)
            found.append(HeldOut(f"fold {fold + 1} of {self.folds}", frozenset().union(*tests), tests))
        if len(self.names) > 1:
            for kind, name in enumerate(self.names):
                parts = frozenset(cells[kind, fold] for fold in folds)
                found.append(HeldOut(f"kind {name}", parts, (parts,), whole_kind=True))
        return found


def kinds_of(batches: Sequence[Batch], kinds: Sequence[str] | None) -> list[tuple[str, ...]]:
    """Return the kind of each window, batch by batch; without any, "" of all.

    Raises:
        RelaxPruneError: there are not as many kinds as windows.
    """
    counts = [window_count(batch) for batch in batches]
    if kinds is None:
        return [("",) * count for count in counts]
    if isinstance(kinds, str) or not all(isinstance(kind, str) for kind in kinds):
        raise RelaxPruneError(f"kinds must name the kind of each window, got {kinds!r}")
    if len(kinds) != sum(counts):
        raise RelaxPruneError(f"kinds must name a kind for each of {sum(counts)} windows, got {len(kinds)}")
    left = iter(kinds)
    return [tuple(next(left) for _ in range(count)) for count in counts]


def most_parts(kinds: int) -> int:
    """Return in how many parts text of some kinds is summed at most, so that it can be held out."""
    return _FOLDS if kinds < 2 else _FOLDS_OF_KINDS * kinds


ONE_PART = Parts()
"""All tokens in one sum."""
HALVES = Parts(folds=2)
"""Even and odd batches apart."""
