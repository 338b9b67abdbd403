"""Proving a symmetric matrix positive semidefinite, in float64 with an allowance for rounding or in whole numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .arrays import UNIT, Array
from .verified import CertificateError


@dataclass(frozen=True, eq=False)
class Definiteness:
    """How far a matrix of float64 is from positive semidefinite, at most.

    Attributes:
        smallest: its smallest eigenvalue in the scaling that gives ``size`` a unit diagonal, as computed.
        missing: (n,) float64, at least 0, with which on its diagonal it is certainly semidefinite.
    """

    smallest: float
    missing: Array


def check_semidefinite(failure: str, matrix: Array, size: Array) -> Definiteness:
    """Raise CertificateError unless a matrix is positive semidefinite, up to rounding in float64.

    Args:
        failure: what errors begin with.
        matrix: (n, n) symmetric, a sum of terms; float64, or rationals, for which nothing may be missing.
        size: (n, n), the sum of their absolute values.
    """
    found, rounding = _definiteness(matrix.astype(np.float64), size.astype(np.float64))
    if matrix.dtype == object:
        if not is_semidefinite(matrix):
            raise CertificateError(f"{failure}: exactly, with an eigenvalue near {found.smallest:.6g}")
        return Definiteness(found.smallest, np.zeros(len(matrix)))
    if not found.smallest >= -rounding:
        raise CertificateError(
            f"{failure}: the smallest eigenvalue is {found.smallest:.6g}, and rounding explains only {rounding:.2g}"
        )
    return found


def least_eigenvalue(matrix: Array) -> float:
    """Return what no eigenvalue of a matrix (n, n) of float64 is below, in the scaling of unit diagonal."""
    found, rounding = _definiteness(matrix, np.abs(matrix))
    return found.smallest - rounding


def _definiteness(matrix: Array, size: Array) -> tuple[Definiteness, float]:
    """Return how definite a matrix of float64 is, and what of an eigenvalue rounding may explain.

    Entries that stand alone are judged by themselves, so that an exact zero among them is none of the others'.
    """
    diagonal, missing = size.diagonal(), np.zeros(len(matrix))
    if not (np.isfinite(matrix).all() and np.isfinite(size).all()):
        return Definiteness(-math.inf, missing), 0.0
    empty = diagonal == 0
    if size[empty].any():
        return Definiteness(-math.inf, missing), 0.0
    if empty.all():
        return Definiteness(0.0, missing), 0.0
    scale = np.where(empty, 1.0, diagonal)
    alone = np.count_nonzero(size, axis=1) == ~empty
    own = matrix.diagonal()[alone] / scale[alone]
    missing[alone] = np.maximum(0.0, 4 * UNIT - own) * scale[alone]
    joined = ~alone
    smallest, rounding = float(own.min(initial=math.inf)), 4 * UNIT
    if joined.any():
        root = 1 / np.sqrt(scale[joined])
        scaled = matrix[joined][:, joined] * root * root[:, None]
        terms = max(1.0, float((size[joined][:, joined] * root * root[:, None]).max()))
        lowest, slack = _eigenvalue(scaled, terms)
        if lowest < slack and not _factorises(scaled, terms):
            missing[joined] = (slack - lowest) * scale[joined]
        smallest, rounding = min(smallest, lowest), max(rounding, slack)
    return Definiteness(smallest, missing), rounding


def _eigenvalue(scaled: Array, size: float) -> tuple[float, float]:
    """Return the smallest eigenvalue of (n, n) with terms up to ``size``, and what rounding may hide of it."""
    values = np.linalg.eigvalsh(scaled)
    return float(values[0]), 4 * len(scaled) * UNIT * max(size, float(np.abs(values).max()))


def _factorises(scaled: Array, size: float) -> bool:
    """Return whether a Cholesky factorisation proves a matrix (n, n) with terms up to ``size`` semidefinite.

    One that ends is that of a matrix not further away than n(n + 5) units (Higham, Accuracy and Stability of Numerical
    Algorithms, theorem 10.3), besides which its entries were rounded.
    """
    n = len(scaled)
    shifted = scaled - np.diag(np.full(n, n * (n + 8) * UNIT * size))
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return True


def is_semidefinite(matrix: Array) -> bool:
    """Return whether a symmetric matrix of rationals (n, n) is positive semidefinite, exactly.

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
