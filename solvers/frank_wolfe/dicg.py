"""Decomposition-invariant pairwise Frank-Wolfe, with conjugate gradients inside faces: fast to a small gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Quadratic, RelaxPruneError, Working

from ..gap import within_gap
from ..loop import Budget, IterativeSolver
from ..state import FirstOrderState
from .engine.in_face import Faces, advance

_WARM_STEPS = 10  # plain Frank-Wolfe steps that lead off the start, a vertex, whose face is a point
_MOST_ROUNDS = 16  # line searches on one product while entries reach their bounds


class DicgState(FirstOrderState):
    """The relaxed mask, the half gradient carried along, and the last direction inside the face."""

    def __init__(self, problem: Working, start: Tensor, in_face: bool, gap_tolerance: float | None) -> None:
        """Begin at ``start`` (rows, cols)."""
        super().__init__(problem, start)
        self.direction = torch.zeros_like(start)  # (rows, cols), the last one
        self.image = torch.zeros_like(start)  # (rows, cols), Q times it
        blocks = problem.polytope.block_count(problem.shape)
        self.conjugate = torch.zeros(blocks, dtype=torch.bool, device=start.device)  # may the last one be built on?
        self.hits = torch.zeros(blocks, dtype=torch.long, device=start.device)  # since the loop last looked
        self.faces = Faces(problem.polytope, problem.shape, start.device)
        self.in_face = in_face and self.faces.disjoint
        self.gap_tolerance = gap_tolerance
        self.rounds = _MOST_ROUNDS
        self.looked_at = 0

    def refresh(self, problem: Quadratic) -> None:
        """Restore the counts that rounding changed, and compute the half gradient from scratch."""
        if self.in_face:
            self.faces.settle(self.mask)
        super().refresh(problem)


@dataclass(frozen=True)
class DICG(IterativeSolver[DicgState]):
    """Decomposition-invariant conditional gradients: pairwise steps without an active set.

    Moves from the away vertex a of the minimal face that contains m to the oracle's vertex v: a comes from the oracle
    with the entries at 0 and 1 held there, so nothing is stored and all rows run in one batch. The step is that of an
    exact line search, at most as long as the set allows (Garber and Meshi, NeurIPS 2016, arXiv 1605.06492; away steps:
    Bashiri and Zhang, NeurIPS 2017, arXiv 1711.02106). Convergence is linear; that of plain Frank-Wolfe is sublinear.

    With ``in_face`` (for sets whose counts share no entries: KSparse, NM and their faces) the pairwise steps only leave
    a face; inside one, while it holds at least ``share`` of the Frank-Wolfe gap, conjugate gradients minimise over it,
    preconditioned by diag(Q): the in-face steps of Freund, Grigas and Mazumder (SIAM J. Optim. 2017, arXiv 1511.02204),
    with the directions of GPCG (Moré and Toraldo, SIAM J. Optim. 1991). One product per iteration in either case; an
    entry that reaches a bound is taken out of the direction at the cost of two lines of Q, and the search goes on.
    Other sets use the pairwise steps alone.

    Args:
        dtype: ``"float32"`` or ``"float64"``; gaps below about 1e-4 need the latter.
        in_face: False uses the published pairwise steps only.
        share: share of the gap that must lie inside the face to stay in it, in (0, 1).
    """

    in_face: bool = True
    share: float = 0.5

    name: ClassVar[str] = "dicg"
    summary: ClassVar[str] = "decomposition-invariant pairwise Frank-Wolfe with in-face conjugate gradients"
    default_iterations: ClassVar[int] = 1000
    honours: ClassVar[frozenset[str]] = IterativeSolver.honours | {"gap_tolerance"}
    monotone: ClassVar[bool] = True
    matrices: ClassVar[int] = 14

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not 0 < self.share < 1:
            raise RelaxPruneError(f"share must lie between 0 and 1, got {self.share!r}")

    def init(self, problem: Working, start: Tensor, budget: Budget) -> DicgState:
        """Start at a feasible mask."""
        return DicgState(problem, start, self.in_face, budget.gap_tolerance)

    def step(self, problem: Working, state: DicgState) -> None:
        """Choose a direction per coupled block and search along it."""
        state.refresh_when_due(problem)
        polytope, half, mask = problem.polytope, state.half_gradient, state.mask
        vertex = polytope.lmo(half)
        inside = torch.zeros_like(state.conjugate)
        if state.iteration < _WARM_STEPS:
            direction = vertex - mask
        elif not state.in_face:
            direction = vertex - polytope.face_lmo(-half, mask)
        else:
            # Once a face is nearly solved its vertices cost about alike; its best one shares most entries with v.
            away = polytope.face_lmo(half, mask)
            gap = polytope.block_sum(torch.linalg.vecdot(half, mask - vertex))
            inside = polytope.block_sum(torch.linalg.vecdot(half, mask - away)) >= self.share * gap
            stay = polytope.to_rows(inside, mask.shape[0])
            direction = torch.where(stay, self._conjugate(problem, state), vertex - away)
        rounds = state.rounds if state.in_face and state.iteration >= _WARM_STEPS else 1
        moved = advance(problem, state.faces, mask, half, direction, rounds)
        state.direction, state.image = moved.direction.view(mask.shape), moved.image.view(mask.shape)
        state.conjugate = inside & (moved.hits == 0)
        state.hits += moved.hits
        state.product_count += 1
        state.iteration += 1

    @staticmethod
    def _conjugate(problem: Working, state: DicgState) -> Tensor:
        """Return the direction inside the face, Q-conjugate to the last one if that stayed in the same face."""
        polytope = problem.polytope
        steepest = state.faces.downhill(state.half_gradient, state.mask, problem.diagonal)
        curvature = polytope.block_sum(torch.linalg.vecdot(state.image, state.direction))
        overlap = polytope.block_sum(torch.linalg.vecdot(state.image, steepest))
        keep = state.conjugate & (curvature > 0)
        factor = torch.where(keep, -overlap / torch.where(keep, curvature, 1.0), 0.0)
        direction = steepest + polytope.to_rows(factor, steepest.shape[0]) * state.direction
        direction = state.faces.balance(direction, state.mask, problem.diagonal)
        descends = polytope.block_sum(torch.linalg.vecdot(state.half_gradient, direction)) < 0
        return torch.where(polytope.to_rows(descends, steepest.shape[0]), direction, steepest)

    def done(self, problem: Working, state: DicgState) -> Tensor:
        """Return which blocks are within the gap tolerance; plan as many rounds as entries lately reached bounds."""
        most = int(state.hits.amax()) if len(state.hits) else 0
        since = max(1, state.iteration - state.looked_at)
        state.rounds = min(_MOST_ROUNDS, 1 + 2 * -(-most // since))
        state.looked_at = state.iteration
        state.hits.zero_()
        return within_gap(problem, state.mask, state.half_gradient, state.gap_tolerance)
