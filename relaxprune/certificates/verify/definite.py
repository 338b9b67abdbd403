"""Is a symmetric matrix positive semidefinite: by its eigenvalues, or in whole numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_EPSILON = float(np.finfo(np.float64).eps)
_LEAST_SCALE = 1e-14


def fractions(values: Array) -> Array:
    """Return an array of floats as the rationals that they are, dtype object."""
    out = np.empty(values.shape, dtype=object)
    out.reshape(-1)[:] = [Fraction(value) for value in values.reshape(-1).tolist()]
    return out


def smallest_eigenvalue(matrix: Array, size: Array) -> tuple[float, float]:
    """Return the smallest eigenvalue in the scaling that gives ``size`` a unit diagonal, and what rounding it may hide.

    Args:
        matrix: (n, n) float64, symmetric, a sum of terms.
        size: (n, n) float64, the sum of their absolute values.
    """
    n = len(matrix)
    if n == 0:
        return 0.0, 0.0
    diagonal = size.diagonal()
    largest = float(diagonal.max())
    if largest == 0:
        return (0.0, 0.0) if not matrix.any() else (-math.inf, 0.0)
    root = 1 / np.sqrt(np.maximum(diagonal, _LEAST_SCALE * largest))
    values = np.linalg.eigvalsh(matrix * root * root[:, None])
    norm = max(1.0, float(np.abs(values).max()), float((size * root * root[:, None]).max()))
    return float(values[0]), n * _EPSILON * norm


def is_semidefinite(matrix: Array) -> bool:
    """Tell whether a symmetric matrix of rationals (n, n) is positive semidefinite, exactly.

    LDLᵀ without fractions (Bareiss, Mathematics of Computation 22, 1968): every entry is a minor. A zero pivot must
    have zeros beside it.
    """
    n = len(matrix)
    unit = math.lcm(*(Fraction(value).denominator for value in matrix.reshape(-1)))
    lines = [[int(value * unit) for value in line] for line in matrix.tolist()]
    before = 1
    for k in range(n):
        pivot, line = lines[k][k], lines[k]
        if pivot < 0 or (pivot == 0 and any(line[k + 1 :])):
            return False
        if pivot == 0:
            continue
        for i in range(k + 1, n):
            for j in range(i, n):
                lines[i][j] = (lines[i][j] * pivot - line[i] * line[j]) // before
        before = pivot
    return True
