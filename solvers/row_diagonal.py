"""The diagonal that may leave one row's quadratic form, for branch and bound: small, and better conditioned than tight.

On binaries z_j² = z_j, so zᵀ Q z = zᵀ (Q − Diag(d)) z + d·z for every diagonal d. The larger d, the larger the
right-hand side between the masks, and the sooner branch and bound ends (quadratic convex reformulation: Billionnet and
Elloumi, Mathematical Programming 109, 2007).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_UNIT_ROUNDOFF = 2.0**-53
_MARGIN = 1e-5  # in correlation scaling
_BARRIERS = 9
_NEWTON_STEPS = 8
_SHRINK = 0.5
_CENTRED = 1e-3


def largest_diagonal(quadratic: Array) -> Array:
    """Return d with Q − Diag(d) proven positive semidefinite and Σ d as large as a barrier method finds it.

    Starts from the smallest eigenvalue in correlation scaling and never ends below it; entries are negative where Q
    itself is not positive semidefinite (the form is then made convex, still without a change on masks).

    Args:
        quadratic: (n, n) symmetric float64 with a nonnegative diagonal.

    Returns:
        (n,) float64.
    """
    diagonal = np.diagonal(quadratic).copy()
    live = diagonal > 0
    out = np.zeros_like(diagonal)
    if not live.any():
        return out
    root = np.sqrt(diagonal[live])
    correlation = quadratic[np.ix_(live, live)] / root / root[:, None]
    np.fill_diagonal(correlation, 1.0)
    smallest = float(np.linalg.eigvalsh(correlation)[0])
    n = len(correlation)
    # Beyond what rounding needs, a margin keeps the form well conditioned: solvers regularise one that is not.
    slack = _MARGIN + 4 * n * (n + 8) * _UNIT_ROUNDOFF * max(1.0, float(np.abs(correlation).sum(axis=1).max()))
    cheap = np.full(n, smallest - slack)
    # Weights are the diagonal itself: what leaves the form is counted in the units of the objective.
    better = _ascend(correlation, cheap - 1e-2, diagonal[live] / diagonal[live].mean())
    chosen = better if better @ diagonal[live] > cheap @ diagonal[live] else cheap
    out[live] = _proven(correlation, chosen, slack) * diagonal[live]
    return out


def _ascend(correlation: Array, start: Array, weights: Array) -> Array:
    """Maximise weights·δ + μ log det(C − Diag δ) by Newton's method while μ falls; ``start`` is strictly inside."""
    delta, barrier = start, 1.0
    for _ in range(_BARRIERS):
        for _ in range(_NEWTON_STEPS):
            inverse = np.linalg.inv(correlation - np.diag(delta))
            gradient = weights - barrier * np.diagonal(inverse)
            direction = np.linalg.solve(barrier * inverse * inverse, gradient)
            decrement = float(gradient @ direction)
            step = 1.0 / (1.0 + (max(decrement, 0.0) / barrier) ** 0.5)  # damped: stays inside the cone
            while not _definite(correlation - np.diag(delta + step * direction), 0.0):
                step *= _SHRINK
                if step < _CENTRED**3:
                    return delta
            delta = delta + step * direction
            if decrement < _CENTRED * barrier:
                break
        barrier *= _SHRINK
    return delta


def _proven(correlation: Array, delta: Array, slack: float) -> Array:
    """Lower ``delta`` evenly until a Cholesky factorisation with ``slack`` proves C − Diag(δ) ⪰ 0."""
    lower = slack
    while not _definite(correlation - np.diag(delta - lower), slack):
        lower *= 2
    return delta - lower


def _definite(matrix: Array, slack: float) -> bool:
    """Tell whether ``matrix`` − slack · I has a Cholesky factor."""
    try:
        np.linalg.cholesky(matrix - slack * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True
