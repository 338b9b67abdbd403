"""Exchanges judged by the error after refitting, for whole batches of rows.

For a row with target t, Gram H, support S and complement N, let P = H_SS⁻¹, C = P H_SN, v the least-squares weights on
S, g = ((t − v) H)_N and s_j = H_jj − H_jS C_j. Pruning u raises the error by v_u² / P_uu; restoring p then lowers it by
(g_p + v_u C_up / P_uu)² / (s_p + C_up² / P_uu). Both together are known for all pairs at once, and a move is two
rank-one updates: the sweeps of least-squares regression (Beaton, 1964) on the surgeon's formula (Hassibi and Stork,
1992).
"""

from __future__ import annotations

import torch
from torch import Tensor

PAIR_TENSORS = 4  # (R, k, n − k) held while all pairs are judged, plus C
_TINY = 1e-10  # of the unit diagonal: a column that the support nearly spans is not restored


class Tableau:
    """Rows of equal support size, each with the entries of its support first.

    Args:
        target: (R, n) float64, scaled so that the Gram has unit diagonal.
        matrix: (n, n) float64, the scaled Gram.
        mask: (R, n) bool with k kept in each row.
        group: consecutive columns inside which exchanges stay, or None.
        fixed: (R, n) bool, entries that do not move, or None.
    """

    def __init__(
        self, target: Tensor, matrix: Tensor, mask: Tensor, group: int | None = None, fixed: Tensor | None = None
    ) -> None:
        self.target, self.matrix, self.group, self.fixed = target, matrix, group, fixed
        self.right = target @ matrix  # (R, n)
        self.count = int(mask[0].sum())
        self.size = mask.shape[1]
        # (R, n): the columns of the support, then the others.
        self.order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        self.even: tuple[int, int] | None = None  # kept and pruned of every group
        if group is not None:
            kept = mask.view(len(mask), -1, group).sum(dim=2).unique().tolist()
            self.even = (kept[0], group - kept[0]) if len(kept) == 1 else None
        self.refresh()

    def refresh(self) -> None:
        """Compute everything from the supports: moves leave rounding behind."""
        count = self.count
        inside, outside = self.order[:, :count], self.order[:, count:]
        system = self.matrix[inside.unsqueeze(2), inside.unsqueeze(1)]
        cross = self.matrix[inside.unsqueeze(2), outside.unsqueeze(1)]
        factor, info = torch.linalg.cholesky_ex(system)
        self.good = info == 0  # (R,): others are left as they are
        self.inverse = torch.cholesky_inverse(factor)
        self.coupling = self.inverse @ cross  # C
        side = self.right.gather(1, inside)
        self.value = (self.inverse @ side.unsqueeze(2)).squeeze(2)  # v, (R, k)
        self.slope = self.right.gather(1, outside) - (self.value.unsqueeze(1) @ cross).squeeze(1)  # g, (R, n − k)
        self.room = 1.0 - (cross * self.coupling).sum(dim=1)  # s
        self.error = (self.right * self.target).sum(dim=1) - (self.value * side).sum(dim=1)  # (R,)

    def finite(self) -> bool:
        """Return whether the errors of all rows that could be factorised are finite numbers. Waits for the device."""
        return bool((torch.isfinite(self.error) | ~self.good).all())

    def best(self, pool: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the change of the best exchange of each row, (R,), and its places in support and complement.

        Args:
            pool: look only at this many entries of the support, those cheapest to prune; None looks at all. If every
                group keeps the same number, all pairs inside groups are looked at anyway: they are few.
        """
        own = self.inverse.diagonal(dim1=1, dim2=2)
        lost = self.value.square() / own
        held = None if self.fixed is None else self.fixed.gather(1, self.order)
        if held is not None:
            lost = lost.masked_fill(held[:, : self.count], torch.inf)
        closed = None if held is None else held[:, self.count :]
        if self.even is not None:
            return self._best_in_groups(own, lost, closed, *self.even)
        coupling, value, inside = self.coupling, self.value, self.order[:, : self.count]
        chosen = None
        if pool is not None and pool < self.count:
            chosen = lost.topk(pool, dim=1, largest=False, sorted=False).indices
            coupling = coupling.gather(1, chosen.unsqueeze(2).expand(-1, -1, coupling.shape[2]))
            own, lost, value, inside = (part.gather(1, chosen) for part in (own, lost, value, inside))
        own, lost, value = (part.unsqueeze(2) for part in (own, lost, value))
        change = _change(coupling, own, lost, value, self.slope.unsqueeze(1), self.room.unsqueeze(1))
        if closed is not None:
            change.masked_fill_(closed.unsqueeze(1), torch.inf)
        if self.group is not None:
            outside = self.order[:, self.count :]
            change.masked_fill_((inside // self.group).unsqueeze(2) != (outside // self.group).unsqueeze(1), torch.inf)
        least, index = self._least(change)
        width = self.size - self.count
        leave = (index // width).unsqueeze(1)
        leave = leave if chosen is None else chosen.gather(1, leave)
        return least, leave.squeeze(1), index % width

    def _best_in_groups(
        self, own: Tensor, lost: Tensor, closed: Tensor | None, kept: int, pruned: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best exchange inside groups; the entry that enters takes the place of the one that leaves."""
        rows, groups = len(own), own.shape[1] // kept
        inside, outside = (rows, groups, kept, 1), (rows, groups, 1, pruned)
        blocks = self.coupling.view(rows, groups, kept, groups, pruned).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        change = _change(
            blocks,
            *(part.reshape(inside) for part in (own, lost, self.value)),
            *(part.reshape(outside) for part in (self.slope, self.room)),
        )
        if closed is not None:
            change.masked_fill_(closed.reshape(outside), torch.inf)
        least, index = self._least(change)
        group, rest = index // (kept * pruned), index % (kept * pruned)
        return least, group * kept + rest // pruned, group * pruned + rest % pruned

    def _least(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least change of each row and its flat place."""
        change[~self.good] = torch.inf
        return change.nan_to_num_(nan=torch.inf, posinf=torch.inf).flatten(1).min(dim=1)

    def exchange(self, rows: Tensor, leave: Tensor, enter: Tensor, change: Tensor) -> None:
        """Prune and restore one entry in each of ``rows`` (R,), by their places, and update everything."""
        line = torch.arange(len(rows), device=rows.device)
        inverse, coupling = self.inverse[rows], self.coupling[rows]
        value, slope, room = self.value[rows], self.slope[rows], self.room[rows]
        # Out: the column of P, over its pivot.
        pivot = inverse[line, leave, leave]
        column = inverse[line, :, leave] / pivot.unsqueeze(1)
        across, out = coupling[line, leave], value[line, leave]
        inverse.baddbmm_(column.unsqueeze(2), inverse[line, leave].unsqueeze(1), alpha=-1)
        coupling.baddbmm_(column.unsqueeze(2), across.unsqueeze(1), alpha=-1)
        value = value - column * out.unsqueeze(1)
        slope = slope + across * (out / pivot).unsqueeze(1)
        room = room + across.square() / pivot.unsqueeze(1)
        for tensor in (inverse, coupling):
            tensor[line, leave] = 0.0
        inverse[line, :, leave] = 0.0
        value[line, leave] = 0.0
        # In: the row of the Schur complement, of the entry that enters.
        order = self.order[rows]
        inside, outside = order[:, : self.count], order[:, self.count :]
        name = outside[line, enter]
        beside = self.matrix[name.unsqueeze(1), inside]
        beside[line, leave] = 0.0
        schur = self.matrix[name.unsqueeze(1), outside] - (beside.unsqueeze(1) @ coupling).squeeze(1)
        size, gain = room[line, enter], slope[line, enter]
        toward = coupling[line, :, enter].clone()
        toward[line, leave] = -1.0
        step = (gain / size).unsqueeze(1)
        value = value - toward * step
        slope = slope - schur * step
        room = room - schur.square() / size.unsqueeze(1)
        inverse.baddbmm_(toward.unsqueeze(2), (toward / size.unsqueeze(1)).unsqueeze(1))
        coupling.baddbmm_(toward.unsqueeze(2), (schur / size.unsqueeze(1)).unsqueeze(1), alpha=-1)
        # The entry that left takes the place of the one that entered, outside the new support.
        gone = inside[line, leave]
        order[line, leave], order[line, self.count + enter] = name, gone
        edge = self.matrix[gone.unsqueeze(1), order[:, : self.count]]
        coupling[line, :, enter] = (inverse @ edge.unsqueeze(2)).squeeze(2)
        room[line, enter] = 1.0 - (edge * coupling[line, :, enter]).sum(dim=1)
        slope[line, enter] = self.right[rows, gone] - (value * edge).sum(dim=1)
        self.inverse[rows], self.coupling[rows] = inverse, coupling
        self.value[rows], self.slope[rows], self.room[rows] = value, slope, room
        self.order[rows] = order
        self.error[rows] += change

    def mask(self, rows: Tensor) -> Tensor:
        """Return the masks of ``rows`` (R,): (R, n) bool."""
        order = self.order[rows, : self.count]
        return torch.zeros(len(rows), self.size, dtype=torch.bool, device=order.device).scatter_(1, order, True)


def _change(coupling: Tensor, own: Tensor, lost: Tensor, value: Tensor, slope: Tensor, room: Tensor) -> Tensor:
    """Return the change by pruning one entry and restoring the other, for all pairs of ``coupling``'s shape."""
    slope = torch.addcmul(slope, coupling, value / own)
    room = torch.addcmul(room, coupling, coupling / own)
    gain = torch.where(room > _TINY, slope.square_().div_(room.clamp(min=_TINY)), 0.0)
    return torch.sub(lost, gain)
