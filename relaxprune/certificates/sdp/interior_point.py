"""A primal-dual interior-point method for the semidefinite programs behind bounds, many rows at once.

    maximise  Σ_j y_j + Σ_k λ_k   over y and λ ≥ 0   such that   S = C − Diag(y) − Σ_k λ_k s_k s_kᵀ ⪰ 0

on the subspace of a ``Frame``. Its dual is: minimise ⟨C, X⟩ over X ⪰ 0 on that subspace with diag(X) = 1 and
s_kᵀ X s_k ≥ 1 for every cut k. With C a lifted quadratic over ±1 this is the max-cut relaxation, and a cut with an odd
number of signs says that an odd sum of ±1 is never 0.

Every point of the method is feasible for y, λ, so that its value is a bound whenever one stops. The search direction is
that of Helmberg, Rendl, Vanderbei and Wolkowicz (SIAM Journal on Optimization 6, 1996), with Mehrotra's predictor and
corrector. Since all constraints have rank one, the Newton matrix is (BᵀXB) ∘ (BᵀS⁻¹B) with B = [I, s_1, s_2, …].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cuts import Cuts
from .frame import Frame

_LANCZOS_STEPS = 16
_TO_BOUNDARY = 0.95
_LEAST_SLACK = 0.1
_START = 1.1  # times the largest absolute row sum, which no eigenvalue exceeds
_RIDGE = 1e-11
_HALVINGS = 8


class InteriorPoint:
    """The state of the method for a batch of programs of one size.

    Attributes:
        y: (batch, N) float64.
        multiplier: (batch, m) float64, λ ≥ 0.
        primal: (batch, N, N), X.
        cuts: the cuts.
        gap: (batch,), ⟨X, S⟩ + λ·slack before the last step; the value is within it of the optimum once X is feasible.
        broken: (batch,) bool, rows that rounding stopped; their y and λ are feasible still.

    Args:
        matrix: (batch, N, N) float64 symmetric, C, of order one.
        frame: the subspace.
    """

    def __init__(self, matrix: Tensor, frame: Frame) -> None:
        """Start far inside, where the central path is known: y = −t with t above the largest eigenvalue."""
        self.matrix, self.frame = matrix, frame
        batch = len(matrix)
        self.cuts = Cuts.none(batch, matrix.device)
        self.multiplier = self.slack = matrix.new_zeros(batch, 0)
        centre = matrix.abs().sum(dim=2).amax(dim=1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny) * _START
        self.y = -centre.expand(batch, matrix.shape[1])
        self.broken = torch.zeros(batch, dtype=torch.bool, device=matrix.device)
        self.gap = matrix.new_full((batch,), torch.inf)
        self._shrunk = matrix.new_ones(batch)
        self._factor = torch.linalg.cholesky(self._dual())
        self.primal = centre[:, :, None] * self._inverse()
        self._primal_factor = torch.linalg.cholesky(self.frame.definite(self.primal))

    @property
    def value(self) -> Tensor:
        """The bound that y and λ prove: (batch,)."""
        return self.y.sum(dim=1) + self.multiplier.sum(dim=1)

    def add(self, cuts: Cuts, keep: int) -> None:
        """Add cuts, after dropping all but the ``keep`` most active present ones; λ starts where S stays definite."""
        if self.cuts.count > keep:
            order = (self.multiplier / self.slack).topk(keep, dim=1).indices
            self.cuts = self.cuts.chosen(order)
            self.multiplier, self.slack = self.multiplier.gather(1, order), self.slack.gather(1, order)
        slack = (cuts.values(self.primal) - 1).abs().clamp_(min=_LEAST_SLACK)
        size = self.y.shape[1]
        multiplier = (self.gap / size).unsqueeze(1) / slack
        room = self._reach(self._factor, -self.frame.down(cuts.weighted(multiplier, size)))
        multiplier = multiplier * (0.5 * room).clamp_(max=1.0).unsqueeze(1)
        before = self.cuts, self.multiplier, self.slack
        self.cuts = self.cuts.joined(cuts)
        self.multiplier = torch.cat([self.multiplier, multiplier], 1)
        self.slack = torch.cat([self.slack, slack], 1)
        factor, info = torch.linalg.cholesky_ex(self._dual())
        if bool((info != 0).any()):
            self.cuts, self.multiplier, self.slack = before
            factor = torch.linalg.cholesky_ex(self._dual()).L
        self._factor = factor

    def step(self) -> Tensor:
        """Do one iteration; returns the gap before it, (batch,)."""
        inverse = self._inverse()
        lines = self.cuts.lines(self.primal), self.cuts.lines(inverse)
        pairs = self.cuts.pairs(lines[0]), self.cuts.pairs(lines[1])
        dual = self._lifted_dual()
        self.gap = (self.primal * dual).sum(dim=(1, 2)) + (self.multiplier * self.slack).sum(dim=1)
        mean = self.gap / (self._size + self.cuts.count)
        newton = self._newton(inverse, lines, pairs)
        diagonal = torch.cat([inverse.diagonal(dim1=1, dim2=2), pairs[1].diagonal(dim1=1, dim2=2)], 1)
        goal = torch.ones_like(diagonal)
        predictor = self._direction(newton, inverse, goal, diagonal, torch.zeros_like(mean), None)
        reached = self._gap_after(predictor, dual)
        share = (reached.clamp(min=0) / self.gap).square_().clamp_(1e-3, 0.8)
        share = torch.where(self._shrunk < 0.2, share.clamp(min=0.5), share)
        direction = self._direction(newton, inverse, goal, diagonal, share * mean, predictor)
        self._move(direction)
        return self.gap

    @property
    def _size(self) -> int:
        """Dimension of the subspace."""
        return int(self._factor.shape[1])

    def _newton(self, inverse: Tensor, lines: tuple[Tensor, Tensor], pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Return the Cholesky factor of (BᵀXB) ∘ (BᵀS⁻¹B) + Diag(0, slack / λ)."""
        across = lines[0] * lines[1]
        corner = pairs[0] * pairs[1]
        corner.diagonal(dim1=1, dim2=2).add_(self.slack / self.multiplier)
        top = torch.cat([self.primal * inverse, across.mT], 2)
        newton = torch.cat([top, torch.cat([across, corner], 2)], 1)
        factor, info = torch.linalg.cholesky_ex(newton)
        if bool((info != 0).any()):  # dependent cuts: a ridge leaves the step, a hint in any case, about as it was
            newton.diagonal(dim1=1, dim2=2).mul_(1 + _RIDGE * newton.shape[1])
            factor, info = torch.linalg.cholesky_ex(newton)
            self.broken |= info != 0
        found: Tensor = factor
        return found

    def _direction(
        self,
        newton: Tensor,
        inverse: Tensor,
        goal: Tensor,
        diagonal: Tensor,
        target: Tensor,
        predictor: _Direction | None,
    ) -> _Direction:
        """Solve the linearised conditions X S = target · I, slack · λ = target, with second-order terms if known."""
        size = self.y.shape[1]
        right = goal - target.unsqueeze(1) * diagonal
        right[:, size:] += target.unsqueeze(1) / self.multiplier
        if predictor is not None:
            second = self._times(predictor.primal, predictor)
            cross = predictor.multiplier * predictor.slack / self.multiplier
            right[:, :size] += (second * inverse).sum(dim=2)
            right[:, size:] += (self.cuts.lines(second) * self.cuts.lines(inverse)).sum(dim=2) - cross
        change = torch.cholesky_solve(right.unsqueeze(2), newton).squeeze(2)
        y, multiplier = change[:, :size], change[:, size:]
        dual = -self.cuts.weighted(multiplier, size)
        dual.diagonal(dim1=1, dim2=2).sub_(y)
        direction = _Direction(y, multiplier, self.primal, self.slack, dual, target, target)
        product = self._times(self.primal, direction)
        slack = target.unsqueeze(1) / self.multiplier - self.slack * (1 + multiplier / self.multiplier)
        if predictor is not None:
            product, slack = product + second, slack - cross
        primal = torch.baddbmm(target[:, None, None] * inverse - self.primal, product, inverse, alpha=-1)
        primal = (primal + primal.mT).mul_(0.5)
        steps = _LANCZOS_STEPS if predictor is not None else _LANCZOS_STEPS // 2
        step = _least(self._reach(self._primal_factor, primal, steps), self.slack, slack)
        dual_step = _least(self._reach(self._factor, self.frame.down(dual), steps), self.multiplier, multiplier)
        return _Direction(y, multiplier, primal, slack, dual, step, dual_step)

    def _times(self, primal: Tensor, direction: _Direction) -> Tensor:
        """Return ``primal`` times the change of S: a product only where there are cuts."""
        if self.cuts.count:
            return primal @ direction.dual
        return primal * -direction.y.unsqueeze(1)

    def _gap_after(self, direction: _Direction, dual: Tensor) -> Tensor:
        """Return the gap that full steps along ``direction`` would leave: (batch,)."""
        step = direction.step.clamp(max=1)[:, None, None]
        dual_step = direction.dual_step.clamp(max=1)[:, None, None]
        matrices = ((self.primal + step * direction.primal) * (dual + dual_step * direction.dual)).sum(dim=(1, 2))
        slack = self.slack + step[:, 0] * direction.slack
        return matrices + ((self.multiplier + dual_step[:, 0] * direction.multiplier) * slack).sum(dim=1)

    def _move(self, direction: _Direction) -> None:
        """Go a share of the way to the boundary; S and X are factorised, so a step that leaves the cone is halved."""
        step = (_TO_BOUNDARY * direction.step).clamp_(max=1)
        dual_step = (_TO_BOUNDARY * direction.dual_step).clamp_(max=1)
        for values in (direction.y, direction.multiplier, direction.slack):
            self.broken |= ~torch.isfinite(values).all(dim=1)
        step, dual_step = (torch.where(self.broken, 0.0, value) for value in (step, dual_step))
        old = self.y, self.multiplier, self.primal, self.slack
        for _ in range(_HALVINGS):
            self.y = old[0] + dual_step.unsqueeze(1) * _finite(direction.y)
            self.multiplier = old[1] + dual_step.unsqueeze(1) * _finite(direction.multiplier)
            self._factor, info = torch.linalg.cholesky_ex(self._dual())
            if not bool((info != 0).any()):
                break
            dual_step = torch.where(info != 0, dual_step / 2, dual_step)
        for _ in range(_HALVINGS):
            self.primal = old[2] + step[:, None, None] * _finite(direction.primal)
            self.slack = old[3] + step.unsqueeze(1) * _finite(direction.slack)
            self._primal_factor, primal_info = torch.linalg.cholesky_ex(self.frame.definite(self.primal))
            if not bool((primal_info != 0).any()):
                break
            step = torch.where(primal_info != 0, step / 2, step)
        failed = (info != 0) | (primal_info != 0)
        if bool(failed.any()):
            self._restore(failed, old)
        self._shrunk = torch.minimum(step, dual_step)

    def _restore(self, failed: Tensor, old: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """Put back the last good point of rows that rounding stopped."""
        self.broken |= failed
        self.y = torch.where(failed.unsqueeze(1), old[0], self.y)
        self.multiplier = torch.where(failed.unsqueeze(1), old[1], self.multiplier)
        self.primal = torch.where(failed[:, None, None], old[2], self.primal)
        self.slack = torch.where(failed.unsqueeze(1), old[3], self.slack)
        self._factor = torch.linalg.cholesky_ex(self._dual()).L
        self._primal_factor = torch.linalg.cholesky_ex(self.frame.definite(self.primal)).L

    def _dual(self) -> Tensor:
        """Return S on the subspace: (batch, r, r)."""
        return self.frame.down(self._lifted_dual())

    def _lifted_dual(self) -> Tensor:
        """Return S: (batch, N, N)."""
        weighted = self.cuts.weighted(self.multiplier, self.y.shape[1]) if self.cuts.count else 0.0
        dual = self.matrix - weighted
        dual.diagonal(dim1=1, dim2=2).sub_(self.y)
        return dual

    def _inverse(self) -> Tensor:
        """Return V S⁻¹ Vᵀ: (batch, N, N)."""
        return self.frame.up(torch.cholesky_inverse(self._factor))

    def _reach(self, factor: Tensor, change: Tensor, steps: int = _LANCZOS_STEPS) -> Tensor:
        """Return about the largest t with L Lᵀ + t · change still definite, by Lanczos' method: (batch,)."""
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(factor.shape[1], 1, generator=generator, dtype=factor.dtype).to(factor.device)
        vector = (vector / vector.norm()).expand(len(factor), -1, -1)
        before, off = torch.zeros_like(vector), factor.new_zeros(len(factor), 1, 1)
        diagonal, beside = [], []
        for _ in range(min(steps, factor.shape[1])):
            image = torch.linalg.solve_triangular(factor.mT, vector, upper=True)
            image = torch.linalg.solve_triangular(factor, change @ image, upper=False) - off * before
            along = (image * vector).sum(dim=1, keepdim=True)
            image = image - along * vector
            off = image.norm(dim=1, keepdim=True)
            diagonal.append(along.reshape(-1))
            beside.append(off.reshape(-1))
            before, vector = vector, image / off.clamp(min=torch.finfo(factor.dtype).tiny)
        tridiagonal = torch.diag_embed(torch.stack(diagonal, 1))
        if len(beside) > 1:
            edge = torch.stack(beside[:-1], 1)
            tridiagonal = tridiagonal + torch.diag_embed(edge, 1) + torch.diag_embed(edge, -1)
        values, vectors = torch.linalg.eigh(_finite(tridiagonal))
        lowest = values[:, 0] - beside[-1] * vectors[:, -1, 0].abs()
        return torch.where(lowest < 0, -1 / lowest, torch.inf).nan_to_num_(nan=0.0)


@dataclass
class _Direction:
    """A search direction and how far one may go along it."""

    y: Tensor
    multiplier: Tensor
    primal: Tensor
    slack: Tensor
    dual: Tensor
    step: Tensor
    dual_step: Tensor


def _least(reach: Tensor, value: Tensor, change: Tensor) -> Tensor:
    """Return the smaller of ``reach`` and the t at which value + t · change meets 0: (batch,)."""
    if not value.shape[1]:
        return reach
    ratio = torch.where(change < 0, -value / change, torch.inf)
    return torch.minimum(reach, ratio.amin(dim=1))


def _finite(values: Tensor) -> Tensor:
    """Replace what is not finite by 0."""
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
