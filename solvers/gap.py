"""When a solver may stop: a Frank-Wolfe gap within tolerance, or a vertex that it would not leave."""

from __future__ import annotations

import torch
from torch import Tensor

from relaxprune.problems import Working

# The relative gap that ends a solve by default: what the arithmetic can still tell from zero.
_DEFAULT = {torch.float32: 1e-4, torch.float64: 1e-6}
_VERTEX_TOLERANCE = 1e-5


def at_fixed_vertex(problem: Working, point: Tensor, half_gradient: Tensor) -> Tensor:
    """Return which coupled blocks sit at a vertex that the oracle returns there: Frank-Wolfe stays.

    When annealing, a larger θ only favours such a vertex more.

    Args:
        problem: the working problem.
        point: (rows, cols), the relaxed mask.
        half_gradient: (rows, cols), half the gradient there, annealed or not.

    Returns:
        (blocks,) bool.
    """
    moved = (problem.polytope.lmo(half_gradient) - point).abs() > _VERTEX_TOLERANCE
    return problem.polytope.block_sum(moved.sum(dim=1)) == 0


def within_gap(problem: Working, point: Tensor, half_gradient: Tensor, tolerance: float | None) -> Tensor:
    """Return which coupled blocks have a Frank-Wolfe gap ⟨∇f, m − v⟩ of at most ``tolerance`` times |f|.

    Args:
        problem: the working problem.
        point: (rows, cols), the relaxed mask m.
        half_gradient: (rows, cols), half the gradient at m.
        tolerance: None for 1e-4 in float32 and 1e-6 in float64.

    Returns:
        (blocks,) bool.
    """
    polytope = problem.polytope
    tolerance = _DEFAULT[point.dtype] if tolerance is None else tolerance
    value = polytope.block_sum(problem.row_value(point, half_gradient))
    gap = 2 * polytope.block_sum(torch.linalg.vecdot(half_gradient, point - polytope.lmo(half_gradient)))
    noise = torch.finfo(point.dtype).eps * polytope.block_sum(problem.diagonal)
    return gap <= tolerance * value.abs() + noise
