"""Proving a symmetric matrix positive semidefinite, in float64 with an allowance for rounding or in whole numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .arrays import UNIT, Array
from .verified import CertificateError

_ROUNDINGS = 5  # of an entry: the product of three numbers, and three more terms


@dataclass(frozen=True, eq=False)
class Definiteness:
    """How far a matrix of float64 is from positive semidefinite, at most.

    Attributes:
        smallest: its smallest eigenvalue in the scaling that gives ``size`` a unit diagonal, as computed.
        missing: (n,) float64, at least 0, with which on its diagonal it is certainly semidefinite.
    """

    smallest: float
    missing: Array


def check_semidefinite(failure: str, matrix: Array, size: Array, more_roundings: int = 0) -> Definiteness:
    """Raise CertificateError unless a matrix is positive semidefinite, up to rounding in float64.

    Args:
        failure: what errors begin with.
        matrix: (n, n) symmetric, a sum of terms; float64, or rationals, for which nothing may be missing.
        size: (n, n), the sum of their absolute values.
        more_roundings: how often an entry was rounded while it was computed, beyond five times.
    """
    found, rounding = _definiteness(matrix.astype(np.float64), size.astype(np.float64), _ROUNDINGS + more_roundings)
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
    found, rounding = _definiteness(matrix, np.abs(matrix), _ROUNDINGS)
    return found.smallest - rounding


def _definiteness(matrix: Array, size: Array, roundings: int) -> tuple[Definiteness, float]:
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
    alone = ~empty & (np.count_nonzero(size, axis=1) == 1)
    own, rounding = matrix.diagonal()[alone] / scale[alone], (roundings + 1) * UNIT
    missing[alone] = np.maximum(0.0, rounding - own) * scale[alone]
    joined = ~alone & ~empty
    smallest = float(own.min(initial=math.inf))
    if joined.any():
        root = 1 / np.sqrt(scale[joined])
        scaled = matrix[joined][:, joined] * root * root[:, None]
        sizes = size[joined][:, joined] * root * root[:, None]
        terms = max(1.0, float(sizes.max()), float(np.abs(scaled).max()))
        lowest, slack = _eigenvalue(scaled, terms, roundings)
        if lowest < slack and not _factorises(scaled, terms, roundings):
            missing[joined] = (slack - lowest) * scale[joined]
        smallest, rounding = min(smallest, lowest), max(rounding, slack)
    return Definiteness(smallest, missing * (1 + 8 * UNIT)), rounding


def _eigenvalue(scaled: Array, terms: float, roundings: int) -> tuple[float, float]:
    """Return the smallest eigenvalue of (n, n) with terms up to ``terms``, and what rounding may hide of it.

    Every entry may be off by ``roundings`` units of the terms, and by two more from the scaling, and so a matrix of n
    columns by n times that. LAPACK's eigenvalues are backward stable: off by a modest multiple of n units of the norm
    at most (Users' Guide, section 4.7), taken as 4.
    """
    values = np.linalg.eigvalsh(scaled)
    return float(values[0]), len(scaled) * UNIT * ((roundings + 2) * terms + 4 * float(np.abs(values).max()))


def _factorises(scaled: Array, terms: float, roundings: int) -> bool:
    """Tell whether a Cholesky factorisation proves a matrix (n, n) with terms up to ``terms`` semidefinite.

    One that ends is that of a matrix not further away than n(n + 1) units (Higham, Accuracy and Stability of Numerical
    Algorithms, theorem 10.3), besides which its entries were rounded, see ``_eigenvalue``, and the shift was.
    """
    n = len(scaled)
    shifted = scaled - np.diag(np.full(n, n * (n + roundings + 4) * UNIT * terms))
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
