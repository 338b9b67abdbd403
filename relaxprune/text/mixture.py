"""Mixtures of calibration text: how they are written, and the order of their windows."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relaxprune.problems.checks import whole_number
from relaxprune.problems.errors import RelaxPruneError

SELF = "self"
"""The source that is sampled from the model."""
# Held-out batches are each k-th one: for these sizes and strides, their windows are to be even as well.
_BATCHES = (1, 2, 4)  # windows
_STRIDES = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class SourcePart:
    """One source of a mixture.

    Attributes:
        source: a name of a corpus, the path of a text file, or "self".
        windows: how many windows of it; None for all that there are.
    """

    source: str
    windows: int | None

    def __str__(self) -> str:
        """Write it as ``source_parts`` reads it."""
        name = self.source.replace(",", "\\,")
        return name if self.windows is None else f"{name}:{self.windows}"


def source_parts(text: str, windows: int | None) -> tuple[SourcePart, ...]:
    r"""Read sources that are separated by commas, each with a colon and its number of windows, or all without.

    "builtin:32,self:32" is 32 windows of each; "builtin,self" shares ``windows`` evenly, the first ones taking what is
    left over; a single source without a number takes all of them. A number is what follows the last colon, if that is
    digits only, so that a file ``text:1`` is written "text:1:32". A comma of a name is written with a backslash,
    "one\,two.txt:32". A text that is the name of a file means that file.

    Args:
        text: the sources.
        windows: shared by sources without a number; None for all windows of each.

    Raises:
        RelaxPruneError: an empty source, one that is named twice, the number 0, numbers for some sources only, or fewer
            windows than sources that share them.
    """
    if os.path.isfile(os.path.expanduser(text)):
        return (SourcePart(text, windows),)
    parts = [_part(text, piece) for piece in re.split(r"(?<!\\),", text)]
    twice = [name for name, count in Counter(part.source for part in parts).items() if count > 1]
    if twice:
        raise RelaxPruneError(f"source {twice[0]!r} must be named once, got it twice in {text!r}: add its windows up")
    bare = [part for part in parts if part.windows is None]
    if not bare:
        return tuple(parts)
    if len(bare) < len(parts):
        raise RelaxPruneError(
            f"source {text!r} must give a number of windows with each of its parts or with none, got none with "
            f"{bare[0].source!r}"
        )
    if windows is None:
        return tuple(parts)
    if windows < len(parts):
        raise RelaxPruneError(f"windows must be at least one for each of {len(parts)} sources, got {windows}")
    share, left = divmod(windows, len(parts))
    return tuple(SourcePart(part.source, share + (at < left)) for at, part in enumerate(parts))


def spelt(parts: Sequence[SourcePart]) -> str:
    """Write sources as ``source_parts`` reads them."""
    return ",".join(map(str, parts))


def with_samples(part: SourcePart, share: float) -> tuple[SourcePart, ...]:
    """Return a source and samples of the model beside it, as a share of its windows rounded down to whole ones."""
    count = int((part.windows or 0) * share)
    if part.source == SELF or not count:
        return (part,)
    return (part, SourcePart(SELF, count))


def _part(text: str, piece: str) -> SourcePart:
    """Read one source of a text."""
    name, _, number = piece.rpartition(":")
    counted = bool(name) and number.isascii() and number.isdigit()
    source = (name if counted else piece).replace("\\,", ",").strip()
    if not source:
        raise RelaxPruneError(f"source {text!r} must name a text between its commas, got nothing")
    if not counted:
        return SourcePart(source, None)
    whole_number(f"windows of source {source!r}", int(number), 1)
    return SourcePart(source, int(number))


def interleaved(counts: Sequence[int]) -> list[int]:
    """Return an order of windows of several kinds in which every stretch holds each kind as evenly as it can.

    Among the first n windows each kind's number is its share of n, rounded up or down (the quota methods of Balinski
    and Young, "The quota method of apportionment", 1975). Of the kinds that keep to this, the next one is that which
    the batches of this place, taken every second to eighth one, lack most.

    Args:
        counts: how many windows there are of each kind, each at least 1.

    Returns:
        The index of a kind for each of the sum(counts) places.
    """
    wanted = np.asarray(counts, dtype=np.int64)  # (kinds,)
    total, taken, order = int(wanted.sum()), np.zeros_like(wanted), []
    horizon = 2 * -(-total // int(wanted.min()))  # further on, every kind is due again
    batch, stride = (axis.ravel() for axis in np.meshgrid(_BATCHES, _STRIDES))  # (pairs,)
    held = np.zeros((len(batch), max(_STRIDES), len(wanted)), dtype=np.int64)
    pairs = np.arange(len(batch))
    for place in range(total):
        here = held[pairs, place // batch % stride]  # (pairs, kinds)
        lack = (wanted * (here.sum(axis=1, keepdims=True) + 1) - total * here).sum(axis=0)
        until = np.arange(place + 1, min(total, place + horizon) + 1)
        due = wanted[:, None] * until // total  # (kinds, places)
        for kind in np.argsort(-lack, kind="stable").tolist():
            after = taken + (np.arange(len(wanted)) == kind)
            early = (after[kind] - 1) * total >= wanted[kind] * (place + 1)
            if not early and bool((np.maximum(due - after[:, None], 0).sum(axis=0) <= until - place - 1).all()):
                break
        taken = after
        held[pairs, place // batch % stride, kind] += 1
        order.append(kind)
    return order
