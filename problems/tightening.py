"""The diagonal that a quadratic form can give up: Q − Diag(d) stays convex, and nothing changes on masks.

On binaries m_j² = m_j, so f(m) = f(m) + Σ d_j m_j (1 − m_j) for every d. The larger d, the larger the right-hand side
between the masks, and the better the bounds (quadratic convex reformulation: Billionnet and Elloumi, Mathematical
Programming 109, 2007). Every row of a layer has Q = Diag(w) G Diag(w), so a tightening s with C − Diag(s) ⪰ 0, C the
Gram in correlation scaling, gives every row of every layer that reads the same inputs its own d = s ∘ q, q = diag(Q).
Finding the largest such s is minimum trace factor analysis (Saunderson, Chandrasekaran, Parrilo and Willsky, SIAM
Journal on Matrix Analysis 33, 2012). Entries may be negative.

It is done by Newton's method on weights·s + μ log det(C − Diag(s)) while μ falls. With S = (C − Diag(s))⁻¹ the Hessian
is −μ S∘S, so a step is one inverse and two factorisations, in float32 for large matrices: the result is only a hint,
which ``Gram.proven_tightening`` lowers until float64 proves it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gram import Gram

_MARGIN = {torch.float32: 1e-5, torch.float64: 1e-7}  # lets a rank-deficient matrix have an interior; given back
_SINGLE_FROM = 128  # columns from which float32 is worth it
_ALIKE = 0.1  # least over mean weight: very uneven weights lead to entries that float32 cannot factorise
_GAP = {torch.float32: 0.1, torch.float64: 0.02}  # n μ over the value, which is far nearer to the optimum than that
_WORTHLESS = 0.02  # mean of s below which nothing more is looked for
_FALL = 0.1  # of μ
_MOST_BARRIERS, _MOST_STEPS = 8, 12
_CENTRED = 1.0  # squared Newton decrement before a last full step that leaves s close enough to the central path
_ASCENT, _SHRINK, _LEAST_STEP = 0.1, 0.6, 1e-4
_LEAST_WEIGHT = 1e-3


def largest_tightening(gram: Gram, weights: Tensor | None = None) -> Tensor:
    """Return s with C − Diag(s) proven positive semidefinite and Σ weights · s about as large as possible.

    Args:
        gram: G, (cols, cols).
        weights: (cols,) nonnegative: what a unit of s is worth, in units of q; None weighs all alike, and the result is
            cached with the Gram.

    Returns:
        (cols,) float64, 0 for columns with a zero diagonal.
    """
    if weights is None:
        return gram.remember("largest tightening", lambda: _largest(gram, torch.ones_like(gram.diagonal)))
    return _largest(gram, weights)


def _largest(gram: Gram, weights: Tensor) -> Tensor:
    """Find the tightening of the columns that are correlated with others; it is 1 for the rest."""
    tightening = gram.isolated.to(torch.float64)
    joined = (gram.diagonal > 0) & ~gram.isolated
    if not bool(joined.any()):
        return tightening
    worth = weights.to(torch.float64)[joined]
    worth = (worth / worth.mean().clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=_LEAST_WEIGHT)
    alike = float(worth.min()) >= _ALIKE
    dtype = torch.float32 if alike and len(worth) >= _SINGLE_FROM else torch.float64
    correlation = gram.correlation(joined).to(dtype)
    margin = _MARGIN[dtype] + gram.proof.shift
    correlation.diagonal().add_(margin)
    tightening[joined] = _ascended(correlation, worth.to(dtype)).to(torch.float64) - margin
    return gram.proven_tightening(tightening)


def _ascended(correlation: Tensor, worth: Tensor) -> Tensor:
    """Maximise worth·s such that C − Diag(s) ⪰ 0, nearly: (n,), strictly inside at the precision of the dtype.

    Args:
        correlation: C, (n, n) positive definite with a diagonal near 1.
        worth: (n,), positive.
    """
    tightening = -torch.ones_like(worth)
    factor, _ = _inside(correlation, tightening)
    diagonal = torch.cholesky_inverse(factor).diagonal()
    barrier = torch.dot(worth, diagonal) / torch.dot(diagonal, diagonal)  # the start is most nearly central for this μ
    for _ in range(_MOST_BARRIERS):
        for _ in range(_MOST_STEPS):
            inverse = torch.cholesky_inverse(factor)
            diagonal = inverse.diagonal()
            slope = worth / barrier - diagonal
            root = diagonal.rsqrt()
            newton, info = torch.linalg.cholesky_ex((inverse * root * root.unsqueeze(1)).square_())
            if int(info):
                return tightening
            step = torch.cholesky_solve((slope / diagonal).unsqueeze(1), newton).squeeze(1) / diagonal
            gain = float(torch.dot(slope, step))
            found = _line_search(correlation, tightening, factor, step, worth / barrier, gain)
            if found is None:
                return tightening
            tightening, factor, length = found
            if gain < _CENTRED and length == 1:
                break
        value = max(float(torch.dot(worth, tightening)), _WORTHLESS * len(worth))
        if len(worth) * float(barrier) <= _GAP[worth.dtype] * value:
            break
        barrier = barrier * _FALL
    return tightening


def _line_search(
    correlation: Tensor, tightening: Tensor, factor: Tensor, step: Tensor, worth: Tensor, gain: float
) -> tuple[Tensor, Tensor, float] | None:
    """Return a better tightening, its factor and the length of the step, or None if rounding leaves none."""
    before = 2 * factor.diagonal().log().sum()
    length = 1.0
    while length > _LEAST_STEP:
        trial = tightening + length * step
        trial_factor, inside = _inside(correlation, trial)
        if inside:
            rise = length * torch.dot(worth, step) + 2 * trial_factor.diagonal().log().sum() - before
            if float(rise) >= _ASCENT * length * gain:
                return trial, trial_factor, length
        length *= _SHRINK
    return None


def _inside(correlation: Tensor, tightening: Tensor) -> tuple[Tensor, bool]:
    """Return the Cholesky factor of C − Diag(tightening), and whether it has one."""
    matrix = correlation.clone()
    matrix.diagonal().sub_(tightening)
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor, int(info) == 0
