"""The best weights on a given support: a least-squares problem of its own in every row.

With T the target, H the Gram and S a row's support, v_S = H_SS⁻¹ (T H)_S minimises (t − v) H (t − v)ᵀ over v that is 0
outside S. Everything is float64 and scaled to unit diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.problems import Gram
from relaxprune.problems.precision import product64, row_blocks

DIRECT_COLUMNS = 192  # larger supports go to conjugate gradients first, which are then faster
TOLERANCE = 1e-5  # of ‖(T H)_S‖, for the residual of the normal equations; the objective's excess goes with its square
_ITERATIONS = 100  # of conjugate gradients, or a sixth of the columns: about the cost of factorising a row
_AT_ONCE = 60  # between residuals in float64
_LEAST_SHARE = 1e-3  # of a residual: the reduction that float32 can be trusted with
_LOOK_EVERY = 5
_DAMPING = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)  # of the unit diagonal, tried in turn


@dataclass
class Refitted:
    """Weights on a support.

    Attributes:
        weight: (rows, cols) float64, 0 outside the mask.
        damping: (rows,) float64, what had to be added to the unit diagonal of a row's H_SS; 0 nearly always.
        residual: (rows,) float64, ‖(T H − V H)_S‖ / ‖(T H)_S‖, from scratch.
        products: number of products of the weight's shape for conjugate gradients and residuals.
    """

    weight: Tensor
    damping: Tensor
    residual: Tensor
    products: float


class LeastSquares:
    """Solve for any support of one target and one Gram.

    Args:
        target: (rows, cols) T, any float dtype.
        gram: H, positive semidefinite.
        memory_bytes: bound on temporaries, besides a float64 and a float32 matrix (cols, cols) and one row's system.
    """

    def __init__(self, target: Tensor, gram: Gram, memory_bytes: int) -> None:
        diagonal = gram.diagonal.to(torch.float64)
        self.scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()  # (cols,)
        # An input that never fires has 1 on the diagonal, and leaves its weight as it is.
        self.matrix = gram.full_correlation()
        self.target = target
        self.memory_bytes = memory_bytes

    def solve(self, mask: Tensor, start: Tensor | None = None) -> Refitted:
        """Return the best weights on ``mask`` (rows, cols) bool; ``start`` (rows, cols) are weights near them."""
        rows, cols = mask.shape
        found = Refitted(
            torch.zeros(rows, cols, dtype=torch.float64, device=mask.device),
            torch.zeros(rows, dtype=torch.float64, device=mask.device),
            torch.zeros(rows, dtype=torch.float64, device=mask.device),
            0.0,
        )
        width = int(mask.sum(dim=1).amax())
        iterate = width > DIRECT_COLUMNS
        for part in row_blocks(rows, 8 * (6 * cols if iterate else 3 * width**2 + 4 * cols), self.memory_bytes):
            inside = mask[part]
            wide = self.target[part].to(torch.float64) * self.scale
            right = product64(wide, self.matrix) * inside
            point = torch.zeros_like(right)
            left = torch.arange(len(right), device=mask.device)
            if iterate:
                near = wide if start is None else start[part].to(torch.float64) * self.scale
                point, steps = self._iterate(inside, right, inside * near)
                found.products += steps * len(right) / rows
                left = (self._residual(inside, right, point) > TOLERANCE).nonzero().squeeze(1)
            for some in left.split(max(1, self.memory_bytes // max(1, 24 * width**2))) if len(left) else ():
                point[some], found.damping[part][some] = self._direct(inside[some], right[some])
            found.residual[part] = self._residual(inside, right, point)
            found.products += 2 * len(right) / rows
            found.weight[part] = point / self.scale
        return found

    def _residual(self, inside: Tensor, right: Tensor, point: Tensor) -> Tensor:
        """Return the norm of the normal equations' residual relative to their right-hand side: (R,)."""
        rest = (right - point @ self.matrix) * inside
        size = right.norm(dim=1)
        return torch.where(size > 0, rest.norm(dim=1) / size, rest.norm(dim=1))

    def _direct(self, inside: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Solve by Cholesky factorisations of (R, k, k), k the largest support; a row may need damping."""
        width = int(inside.sum(dim=1).amax())
        index = inside.to(torch.uint8).topk(width, dim=1).indices  # a row with fewer has entries outside at the end
        real = inside.gather(1, index)
        system = self.matrix[index.unsqueeze(2), index.unsqueeze(1)]
        system *= real.unsqueeze(2) & real.unsqueeze(1)
        system.diagonal(dim1=1, dim2=2).fill_(1.0)
        side = right.gather(1, index).unsqueeze(2)
        damping = torch.zeros(len(inside), dtype=torch.float64, device=inside.device)
        values = torch.zeros_like(side)
        open_rows = torch.arange(len(inside), device=inside.device)
        for ridge in _DAMPING:
            part = system[open_rows]
            part.diagonal(dim1=1, dim2=2).add_(ridge)
            factor, info = torch.linalg.cholesky_ex(part)
            good = info == 0
            values[open_rows[good]] = torch.cholesky_solve(side[open_rows[good]], factor[good])
            damping[open_rows[good]] = ridge
            open_rows = open_rows[~good]
            if not len(open_rows):
                break
        point = torch.zeros_like(right).scatter_(1, index, values.squeeze(2) * real)
        return point, damping

    def _iterate(self, inside: Tensor, right: Tensor, point: Tensor) -> tuple[Tensor, int]:
        """Solve the normal equations of all rows at once, from ``point``: corrections in float32 of a float64 residual.

        Returns:
            The weights (R, cols), and the products spent.
        """
        matrix, spent, most = self.matrix.to(torch.float32), 0, max(_ITERATIONS, len(self.matrix) // 6)
        goal = TOLERANCE * right.norm(dim=1, keepdim=True)
        while spent < most:
            rest = (right - point @ self.matrix) * inside
            size = rest.norm(dim=1, keepdim=True)
            spent += 1
            if not bool((size > goal).any()):
                break
            size = torch.where(size > 0, size, 1.0)
            share = (goal / (2 * size)).clamp(min=_LEAST_SHARE)
            step, steps = _correction(matrix, inside.to(torch.float32), (rest / size).float(), share.float())
            point = point + step.to(torch.float64) * size
            spent += steps
        return point, spent


def _correction(matrix: Tensor, inside: Tensor, rest: Tensor, share: Tensor) -> tuple[Tensor, int]:
    """Return conjugate gradient steps that leave ``share`` (R, 1) of residuals ``rest`` (R, cols), and their number."""
    point, direction = torch.zeros_like(rest), rest.clone()
    energy = (rest * rest).sum(dim=1, keepdim=True)
    goal = share.square() * energy
    for step in range(1, _AT_ONCE + 1):
        image = (direction @ matrix).mul_(inside)
        curvature = (direction * image).sum(dim=1, keepdim=True)
        length = torch.where(curvature > 0, energy / curvature, 0.0)
        point.addcmul_(direction, length)
        rest.addcmul_(image, length, value=-1)
        fresh = (rest * rest).sum(dim=1, keepdim=True)
        if step % _LOOK_EVERY == 0 and bool((fresh <= goal).all()):
            break
        direction.mul_(torch.where(energy > 0, fresh / energy, 0.0)).add_(rest)
        energy = fresh
    return point, step
