"""Exchanges judged by the error after the kept weights are fitted again, for whole batches of rows.

For a row with target t, Gram H, support S and complement N, let P = H_SS⁻¹, C = P H_SN, v the least-squares weights on
S, g = ((t − v) H)_N and s_j = H_jj − H_jS C_j. Pruning u raises the error by v_u² / P_uu; restoring p then lowers it by
(g_p + v_u C_up / P_uu)² / (s_p + C_up² / P_uu). Both together are known for all pairs at once, and a move is two
rank-one updates: the sweeps of least-squares regression (Beaton, 1964) on the surgeon's formula (Hassibi and Stork,
1992).
"""

from __future__ import annotations

import torch
from torch import Tensor

PAIR_TENSORS = 4  # (R, k, n − k) held while all pairs are judged, beside C
_TINY = 1e-10  # of the unit diagonal: a column that the support all but spans is not restored


class Tableau:
    """Rows of equal support size, each with the entries of its support first.

    Args:
        target: (R, n) float64, scaled so that the Gram has unit diagonal.
        matrix: (n, n) float64, the scaled Gram.
        mask: (R, n) bool with k kept in each row.
        group: (n,) int64, exchanges stay inside a group; None has none.
        fixed: (R, n) bool, entries that do not move, or None.
    """

    def __init__(
        self, target: Tensor, matrix: Tensor, mask: Tensor, group: Tensor | None = None, fixed: Tensor | None = None
    ) -> None:
        self.target, self.matrix, self.group, self.fixed = target, matrix, group, fixed
        self.right = target @ matrix  # (R, n)
        self.count = int(mask[0].sum())
        self.size = mask.shape[1]
        # (R, n): the columns of the support, then the others.
        self.order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
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

    def best(self, pool: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the change of the best exchange of each row, (R,), and its places in support and complement.

        Args:
            pool: look only at so many entries of the support, those that are cheapest to prune; None looks at all.
        """
        own = self.inverse.diagonal(dim1=1, dim2=2)
        lost = self.value.square() / own
        held = None if self.fixed is None else self.fixed.gather(1, self.order)
        if held is not None:
            lost = lost.masked_fill(held[:, : self.count], torch.inf)
        coupling, value, inside = self.coupling, self.value, self.order[:, : self.count]
        chosen = None
        if pool is not None and pool < self.count:
            chosen = lost.topk(pool, dim=1, largest=False, sorted=False).indices
            coupling = coupling.gather(1, chosen.unsqueeze(2).expand(-1, -1, coupling.shape[2]))
            own, lost, value, inside = (part.gather(1, chosen) for part in (own, lost, value, inside))
        slope = torch.addcmul(self.slope.unsqueeze(1), coupling, (value / own).unsqueeze(2))
        room = torch.addcmul(self.room.unsqueeze(1), coupling, coupling / own.unsqueeze(2))
        gain = torch.where(room > _TINY, slope.square_().div_(room.clamp(min=_TINY)), 0.0)
        change = torch.sub(lost.unsqueeze(2), gain)
        outside = self.order[:, self.count :]
        if held is not None:
            change.masked_fill_(held[:, self.count :].unsqueeze(1), torch.inf)
        if self.group is not None:
            change.masked_fill_(self.group[inside].unsqueeze(2) != self.group[outside].unsqueeze(1), torch.inf)
        change[~self.good] = torch.inf
        least, index = change.nan_to_num_(nan=torch.inf, posinf=torch.inf).flatten(1).min(dim=1)
        width = self.size - self.count
        leave = (index // width).unsqueeze(1)
        leave = leave if chosen is None else chosen.gather(1, leave)
        return least, leave.squeeze(1), index % width

    def exchange(self, rows: Tensor, leave: Tensor, enter: Tensor, change: Tensor) -> None:
        """Prune and restore one entry in each of ``rows`` (R,), by their places, and bring everything up to date."""
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
        # The entry that left stands where the one that entered stood, beside the new support.
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
