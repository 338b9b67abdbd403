"""Checks that all claims share: objectives and bounds per block, and totals as the sums of their blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction
from typing import Self

import numpy as np

from .arrays import Array, below, floats, number
from .claim import Claim
from .mask_set import MaskSet
from .verified import CertificateError

SMALL = 64  # columns up to which rationals decide what float64 leaves open
OBJECTIVE_TOLERANCE = 1e-9  # of the size of the terms: no bound rests on it


class BlockCheck(ABC):
    """One verification: the part that masks and weights share.

    Args:
        claim: the claim.
        masks: the set of masks, in float64.
        cols: columns of the problem.
        exact: compute in rationals.
    """

    def __init__(self, claim: Claim, masks: MaskSet, cols: int, exact: bool) -> None:
        self.masks, self.exact = masks, exact
        self.height = masks.rows_per_block()
        self.name = block_name(self.height)
        self.stored = floats(claim.block_lower_bound)
        self._claim, self._cols = claim, cols

    @abstractmethod
    def rebuilt(self, rows: slice) -> tuple[Array, Array]:
        """Return the bounds of some whole coupled blocks, less rounding, and what rationals might reach: (blocks,)."""

    @property
    @abstractmethod
    def rational(self) -> Self:
        """The same verification in rationals."""

    def bounds(self) -> Array:
        """Rebuild every block's bound and compare: (blocks,).

        If float64 leaves a doubt and the block is small, rationals decide.
        """
        rebuilt = []
        for rows in self.masks.parts():
            (found, reach), first = self.rebuilt(rows), rows.start // self.height
            blocks = slice(first, first + len(found))
            doubt = misses(found, self.stored[blocks]) & ~(reach < self.stored[blocks])
            if not self.exact and self._cols <= SMALL:
                for block in np.flatnonzero(doubt):
                    start = (first + int(block)) * self.height
                    found[block] = below(self.rational.rebuilt(slice(start, start + self.height))[0][0])
            check_reached(self._claim, blocks, found, self.name)
            rebuilt.append(found)
        return np.concatenate(rebuilt)


def check_objectives(claim: Claim, found: Array, size: Array, name: Callable[[int], str]) -> float:
    """Compare the objectives of a claim with those recomputed; return the sum.

    Args:
        claim: the claim.
        found: (blocks,) recomputed, float64 or rationals.
        size: (blocks,) float64, the size of their terms.
        name: what errors call a coupled block.

    Raises:
        CertificateError: one differs, or their sum.
    """
    stored, exact = floats(claim.block_objective), found.dtype == object
    for block in range(len(stored)):
        if not abs(found[block] - number(stored[block], exact)) <= OBJECTIVE_TOLERANCE * size[block]:
            raise CertificateError(
                f"the objective of {name(block)} is {float(found[block])!r}, "
                f"but the certificate says {float(stored[block])!r}"
            )
    total = float(found.sum())
    if not abs(total - claim.objective) <= OBJECTIVE_TOLERANCE * float(size.sum()):
        raise CertificateError(f"the objective is {total!r}, but the certificate says {claim.objective!r}")
    return total


def check_total(claim: Claim, found: Array) -> float:
    """Check that the bound is at most the sum of the blocks' rebuilt bounds (blocks,), in rationals; return the sum.

    Raises:
        CertificateError: it is above.
    """
    total = sum((Fraction(value) for value in found.tolist()), Fraction(0))
    if Fraction(claim.lower_bound) > total:
        raise CertificateError(
            f"lower_bound is {claim.lower_bound!r}, but the bounds of the coupled blocks sum to {float(total)!r}"
        )
    return below(total)


def check_reached(claim: Claim, blocks: slice, found: Array, name: Callable[[int], str]) -> None:
    """Compare the bounds of some coupled blocks with those rebuilt, from which rounding is taken off already.

    Raises:
        CertificateError: a rebuilt one (blocks,) does not reach the claim's.
    """
    low = misses(found, floats(claim.block_lower_bound)[blocks])
    if low.any():
        worst = int(np.argmax(low))
        raise CertificateError(
            f"the bound of {name(blocks.start + worst)} is {float(found[worst])!r} when rebuilt, "
            f"but the certificate says {float(floats(claim.block_lower_bound)[blocks][worst])!r}"
        )


def misses(found: Array, stored: Array) -> Array:
    """Return which rebuilt bounds do not reach the stored ones, NaN included: (blocks,) bool."""
    reached = [one >= number(other, found.dtype == object) for one, other in zip(found, stored, strict=True)]
    return ~np.array(reached, dtype=bool)


def block_name(height: int) -> Callable[[int], str]:
    """Return what errors call a coupled block of so many rows."""
    if height == 1:
        return lambda block: f"row {block}"
    return lambda block: f"rows {block * height} to {(block + 1) * height - 1}"
