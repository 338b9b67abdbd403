"""The best weights on a given support for any objective: conjugate gradients on the normal equations of all rows."""

from __future__ import annotations

import torch
from torch import Tensor

from relaxprune.problems import MaskProblem, RelaxPruneError

from .least_squares import TOLERANCE, Refitted

_MATRICES = 12  # (rows, cols) float64 tensors held at once
_MOST = 500  # iterations
_LOOK_EVERY = 5
_LOST = 1e-2  # a residual above this is none of rounding: the objective falls for ever


def refitted(problem: MaskProblem, mask: Tensor, memory_bytes: int) -> Refitted:
    """Return the weights V on ``mask`` (rows, cols) bool that minimise the problem's objective, in float64.

    With R = W − V the objective is ⟨R, A R⟩ − ⟨L, R⟩, so that (A V)_S = (A W − L / 2)_S on the support S. Steps are per
    coupled block, in the scaling of unit diagonal, from W's own weights; a product of theirs is one of the objective.

    Raises:
        RelaxPruneError: the linear term pulls along weights that nothing holds, so there are no best ones.
    """
    weight = torch.zeros(problem.shape, dtype=torch.float64, device=problem.device)
    residual, products = weight.new_zeros(len(weight)), 0.0
    for part, piece in problem.split(_MATRICES, memory_bytes):
        steps = _Steps(piece, mask[part])
        spent = steps.run()
        weight[part], residual[part] = steps.point / steps.root * mask[part], steps.left()
        products += spent * piece.shape[0] / problem.shape[0]
    if bool((residual > _LOST).any()):
        raise RelaxPruneError(
            f"row {int(residual.argmax())} has no best weights on this mask: the linear term pulls along weights that "
            "the Gram does not hold; give the Gram damping, such as 1e-6 of its mean diagonal"
        )
    return Refitted(weight, torch.zeros_like(residual), residual, products)


class _Steps:
    """Conjugate gradients on some whole coupled blocks."""

    def __init__(self, problem: MaskProblem, inside: Tensor) -> None:
        self.objective, self.polytope, self.inside = problem.minimised, problem.polytope, inside
        diagonal = self.objective.diagonal()
        self.root = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
        weight = problem.weight.to(torch.float64)
        right = self.objective.product(weight)
        if self.objective.linear is not None:
            right = right - self.objective.linear.to(torch.float64) / 2
        self.right = right / self.root * inside
        self.point = weight * self.root * inside
        self.rest = self.right - self.image(self.point)
        self.size = self._dot(self.right, self.right).sqrt()

    def image(self, point: Tensor) -> Tensor:
        """Return A in the scaling of unit diagonal, on the support: (rows, cols)."""
        return self.objective.product(point / self.root) / self.root * self.inside

    def _dot(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the inner products of each coupled block, (rows, 1)."""
        return self.polytope.to_rows(self.polytope.block_sum(one * other), len(one))

    def left(self) -> Tensor:
        """Return the residual's norm relative to the right-hand side, (rows,)."""
        norm = self._dot(self.rest, self.rest).sqrt()
        return torch.where(self.size > 0, norm / torch.where(self.size > 0, self.size, 1.0), norm).squeeze(1)

    def run(self) -> int:
        """Iterate until every block is solved, and return the products spent; the last residual is from scratch."""
        direction, energy, step = self.rest, self._dot(self.rest, self.rest), 0
        while step < _MOST and (step % _LOOK_EVERY or not bool((self.left() <= TOLERANCE).all())):
            image = self.image(direction)
            curvature = self._dot(image, direction)
            length = torch.where(curvature > 0, energy / torch.where(curvature > 0, curvature, 1.0), 0.0)
            self.point = self.point + length * direction
            self.rest = self.rest - length * image
            fresh = self._dot(self.rest, self.rest)
            turn = torch.where(energy > 0, fresh / torch.where(energy > 0, energy, 1.0), 0.0)
            direction, energy, step = self.rest + turn * direction, fresh, step + 1
        self.rest = self.right - self.image(self.point)
        return step + 3
