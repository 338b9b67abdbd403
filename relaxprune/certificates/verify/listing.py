"""The least objective of a coupled block by looking at every mask, for verification."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from relaxprune.problems import Polytope

from .definite import fractions
from .rebuilding import Array, Quadratics

_MASKS_AT_ONCE = 2**14
_UNIT = 2.0**-53


def least_of_all(polytope: Polytope, rows: slice, rough: Quadratics, exact: Quadratics | None, stored: float) -> Any:
    """Return the least objective over all masks of one coupled block.

    In rationals only the masks are looked at that the stored bound could exceed, seen in float64 with an allowance for
    its error.

    Args:
        polytope: the set of the whole problem.
        rows: the rows of the block.
        rough: the block in float64.
        exact: the block in rationals, or None for float64 alone.
        stored: the bound that is to be judged.

    Raises:
        RelaxPruneError: there are more than 2^20 masks.
    """
    height, cols = rough.factor.shape
    whole = polytope.to_dict().get("per") == "layer"
    masks = (polytope if whole else polytope.rows(rows)).vertices((height, cols)).numpy()
    size = float((2 * (np.abs(rough.factor) * rough.root).sum(axis=1) ** 2).sum() + np.abs(rough.linear).sum())
    allowance = 4 * (height + cols + 8) * _UNIT * size
    least: Any = math.inf
    for start in range(0, len(masks), _MASKS_AT_ONCE):
        some = masks[start : start + _MASKS_AT_ONCE].astype(np.float64)
        values = _values(rough, some)
        if exact is None:
            least = min(least, float(values.min()))
            continue
        doubtful = values - allowance < stored
        for mask in some[doubtful]:
            least = min(least, exact.value(fractions(mask)).sum())
        if not doubtful.all():
            least = min(least, Fraction(float(values[~doubtful].min() - allowance)))
    return least


def _values(quadratics: Quadratics, masks: Array) -> Array:
    """Return the objectives of many masks of one coupled block: (masks,) float64 from (masks, height, cols)."""
    moved = (masks - quadratics.offset) * quadratics.factor
    values: Array = ((moved @ quadratics.gram) * moved).sum(axis=(1, 2)) + (masks * quadratics.linear).sum(axis=(1, 2))
    return values
