"""Exchanges of one kept and one pruned weight: exact gains for whole batches of rows, in float64.

For a mask m, half gradient h and q = diag(Q), pruning a kept u changes the objective by a_u = q_u − 2 h_u, restoring a
pruned p by b_p = q_p + 2 h_p, and both together by a_u + b_p − 2 Q_up. The formula is from the Combinatorial Brain
Surgeon (Yu et al., ICML 2022) and SparseSwaps (arXiv 2512.10922).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relaxprune.problems import Working

RELATIVE_TOLERANCE = 1e-10  # of the block's objective: below it, a gain is not worth a move
_ROUNDING = 2.0**-51  # of the terms of a half gradient entry: below it, a gain is not known to be one


@dataclass
class Moves:
    """Exchanges for a batch of rows.

    Attributes:
        gain: (R,) change of the objective by all exchanges of a row together, negative where they help.
        prune, restore: (R,) one exchange a row, or (R, B) several, of which the first ``length`` are meant.
        length: (R,) int64, or None for one exchange a row.
    """

    gain: Tensor
    prune: Tensor
    restore: Tensor
    length: Tensor | None = None

    def take(self, index: Tensor) -> Moves:
        """Return the moves of the rows in ``index`` (a bool mask or indices)."""
        length = None if self.length is None else self.length[index]
        return Moves(self.gain[index], self.prune[index], self.restore[index], length)

    def changes(self) -> tuple[Tensor, Tensor]:
        """Return the columns that the exchanges of each row touch, and their changes: (R, 2 B) int64 each."""
        prune, restore = (side.view(len(self.gain), -1) for side in (self.prune, self.restore))
        change = torch.ones_like(restore)
        if self.length is not None:
            change = (self.length.unsqueeze(1) > torch.arange(restore.shape[1], device=change.device)).to(torch.long)
        return torch.cat([restore, prune], dim=1), torch.cat([change, -change], dim=1)

    def count(self) -> int:
        """Return the number of exchanges."""
        return len(self.gain) if self.length is None else int(self.length.sum())


class ExchangeState:
    """Masks, half gradients and objectives of a batch of rows, kept consistent under exchanges.

    Args:
        problem: a float64 working problem.
        mask: (rows, cols) bool, feasible.
    """

    def __init__(self, problem: Working, mask: Tensor) -> None:
        """Compute the half gradient once; moves then update it."""
        self.problem = problem
        self.mask = mask.clone()
        self.everything = torch.arange(len(mask), device=mask.device)
        self.root = problem.diagonal.sqrt()
        # Each gain is raised by the possible rounding of its own terms; this part of it never changes.
        self.raised = problem.diagonal.mul(1 + _ROUNDING)
        self.raised += _ROUNDING * problem.constant_size()
        point = mask.to(problem.diagonal.dtype)
        self.half_gradient = problem.half_gradient(point)
        self.objective = problem.row_value(point, self.half_gradient)  # (rows,)
        self.fixed_kept, self.fixed_pruned = problem.polytope.fixed()

    def tolerance(self) -> Tensor:
        """Return the gain per row (rows,) that counts as none."""
        return RELATIVE_TOLERANCE * self.objective.abs()

    def finite(self) -> bool:
        """Return whether the values by which moves are judged are finite."""
        return bool(torch.isfinite(self.half_gradient).all() & torch.isfinite(self.objective).all())

    def refresh(self) -> Tensor:
        """Compute half gradients and objectives from scratch: moves leave rounding errors of large entries.

        Returns:
            (R,) indices of the rows where that may have hidden a gain.
        """
        point = self.mask.to(self.half_gradient.dtype)
        fresh = self.problem.half_gradient(point)
        drift = (fresh - self.half_gradient).abs_().amax(dim=1)
        before, self.half_gradient = self.tolerance(), fresh
        self.objective = self.problem.row_value(point, fresh)
        # A pair has two half gradients, each counted twice.
        return (4 * drift + before > 5 * self.tolerance()).nonzero().squeeze(1)

    def single_gains(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the change of pruning each kept entry and of restoring each pruned one; +∞ where not allowed.

        Each is raised by the possible rounding of its own terms, so that a move that helps truly lowers the objective.
        A margin relative to the whole row would hide every gain between small entries next to large ones.

        Args:
            rows: (R,) indices.

        Returns:
            Two (R, cols) tensors.
        """
        mask, root, raised, half = (
            values if rows is self.everything else values[rows]
            for values in (self.mask, self.root, self.raised, self.half_gradient)
        )
        # |Q_ij| ≤ sqrt(q_i q_j).
        if self.problem.couples:  # a half gradient sums over every row
            size = torch.where(self.problem.summed(self.mask), self.root, 0.0).sum()
        else:
            size = torch.where(self.problem.summed(mask), root, 0.0).sum(dim=1, keepdim=True)
        raised = torch.addcmul(raised, root, size * _ROUNDING)
        prune = torch.where(mask, torch.sub(raised, half, alpha=2), torch.inf)
        restore = torch.where(mask, torch.inf, raised.add_(half, alpha=2))
        if self.fixed_kept is not None:
            prune.masked_fill_(self.fixed_kept[rows], torch.inf)
        if self.fixed_pruned is not None:
            restore.masked_fill_(self.fixed_pruned[rows], torch.inf)
        return prune, restore

    def flip(self, rows: Tensor, columns: Tensor, change: Tensor) -> None:
        """Prune and restore entries; the caller adds the gains to ``objective``.

        Args:
            rows: (R,) indices, each once.
            columns: (R, B); if one occurs twice in a row, only one of its changes is not 0.
            change: (R, B) int64: −1 prunes, 1 restores, 0 leaves.
        """
        mask = self.mask[rows]
        # Counted, not written: a column that occurs twice would take either value.
        flipped = torch.zeros_like(mask, dtype=torch.int8).scatter_add_(1, columns, change.abs().to(torch.int8))
        self.mask[rows] = mask ^ (flipped > 0)
        if self.problem.couples:
            self.half_gradient += self.problem.spread(rows, columns, change.to(self.half_gradient.dtype))
            return
        moved = self.problem.coupling_sum(rows, columns, change.to(self.half_gradient.dtype))
        if rows is self.everything:
            self.half_gradient += moved
        else:
            self.half_gradient.index_add_(0, rows, moved)

    def apply(self, rows: Tensor, moves: Moves) -> None:
        """Exchange in each of ``rows``."""
        self.objective[rows] += moves.gain
        if len(rows):
            self.flip(rows, *moves.changes())

    def together(self, rows: Tensor, moves: Moves) -> tuple[Tensor, Moves]:
        """Return as many rows' moves, the best first, as are best together where rows are coupled.

        A move's gain becomes what it adds to those before it. The first one alone is always among them.
        """
        order = moves.gain.argsort()
        rows, moves = rows[order], moves.take(order)
        columns, change = moves.changes()
        moved = torch.zeros(len(rows), self.mask.shape[1], dtype=self.half_gradient.dtype, device=rows.device)
        moved.scatter_add_(1, columns, change.to(moved.dtype))
        mutual = self.problem.mutual(rows, moved)
        gain = moves.gain + 2 * mutual.tril(-1).sum(dim=1)
        count = int(gain.cumsum(dim=0).argmin()) + 1
        chosen = torch.arange(count, device=rows.device)
        return rows[:count], replace(moves.take(chosen), gain=gain[:count])
