"""The diagonal that may leave a quadratic form: Q − Diag(d) stays convex, and on masks nothing changes.

On binaries m_j² = m_j, so f(m) = f(m) + Σ d_j m_j (1 − m_j) for every d. The larger d, the larger the right-hand side
between the masks, and the better the bounds (quadratic convex reformulation: Billionnet and Elloumi, Mathematical
Programming 109, 2007). Every row of a layer has Q = Diag(w) G Diag(w), so a share s with C − Diag(s) ⪰ 0, C the Gram in
correlation scaling, gives every row of every layer that reads the same inputs its own d = s ∘ q, q = diag(Q). The
largest such s is found by an interior-point method (minimum trace factor analysis; Saunderson, Chandrasekaran, Parrilo
and Willsky, SIAM Journal on Matrix Analysis 33, 2012). Entries may be negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relaxprune.problems import Gram

from .interior_point import InteriorPoint

_MARGIN = 1e-7  # lets a rank-deficient matrix have an interior; given back
_GAP = 0.05  # the value is far nearer to the optimum than the gap says
_MOST_STEPS = 40
_LEAST_WEIGHT = 1e-3


def largest_share(gram: Gram, weights: Tensor | None = None) -> Tensor:
    """Return s with C − Diag(s) proven positive semidefinite and Σ weights · s about as large as can be.

    Args:
        gram: G, (cols, cols).
        weights: (cols,) nonnegative: what a unit of s is worth, in units of q; None takes all alike, and the result is
            remembered with the Gram.

    Returns:
        (cols,) float64, 0 for columns with a zero diagonal.
    """
    if weights is None:
        return gram.remember("largest share", lambda: _largest(gram, torch.ones_like(gram.diagonal)))
    return _largest(gram, weights)


def _largest(gram: Gram, weights: Tensor) -> Tensor:
    """Find the share of the columns that are correlated with others; it is 1 for the rest."""
    share = gram.isolated.to(torch.float64)
    joined = (gram.diagonal > 0) & ~gram.isolated
    if not bool(joined.any()):
        return share
    worth = weights.to(torch.float64)[joined]
    worth = (worth / worth.mean().clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=_LEAST_WEIGHT)
    correlation = gram.correlation(joined)
    margin = _MARGIN + gram.proof.shift
    correlation.diagonal().add_(margin)
    program = InteriorPoint(correlation.unsqueeze(0), worth)
    for _ in range(_MOST_STEPS):
        gap = float(program.step())
        if bool(program.broken) or gap <= _GAP * abs(float(program.value)):
            break
    share[joined] = program.y[0] - margin
    return gram.proven_share(share)
