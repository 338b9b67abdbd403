"""Arrays of float64 or of rationals, in which all numbers are checked."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]

UNIT = 2.0**-53  # what one operation in float64 may be wrong by, relatively
LEAST = 2.0**-1074  # what one operation may lose where its result is too small for float64's relative precision
_SUMMED = 64  # what numpy's pairwise sum of up to 2^40 numbers may be wrong by, in units, relative to their sizes


def floats(values: Tensor) -> Array:
    """Return a tensor of numbers as float64, exactly, in rows that lie together."""
    array: Array = np.ascontiguousarray(values.detach().cpu().double().numpy())
    return array


def fractions(values: Array) -> Array:
    """Return an array of floats as the rationals that they are, dtype object."""
    out = np.empty(values.shape, dtype=object)
    out.reshape(-1)[:] = [Fraction(value) for value in values.reshape(-1).tolist()]
    return out


def number(value: float, exact: bool) -> Any:
    """Return a float, as a fraction if ``exact``."""
    return Fraction(float(value)) if exact else float(value)


def below(value: Any) -> float:
    """Return the float that a number is, or the next one below it."""
    near = float(value)
    return near if not isinstance(value, Fraction) or Fraction(near) <= value else math.nextafter(near, -math.inf)


def sum_error(terms: int) -> float:
    """Bound the error of numpy's sum of so many float64 numbers, relative to the sum of their sizes."""
    return min(terms, _SUMMED) * UNIT
