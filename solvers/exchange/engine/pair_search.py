"""Which exchanges help: quick searches among the cheapest entries, and exact ones over all pairs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .gains import ExchangeState, Moves

_SEVERAL = 4  # exchanges of a row made in one round
_POOL = 16  # candidates per side in the quick search
_PAIRS = 2**17  # pairs evaluated at once in the exact search: small enough for a processor's cache


def pool_search(state: ExchangeState, rows: Tensor) -> Moves:
    """Return good exchanges for each of ``rows``: the cheapest entries to prune with the cheapest to restore."""
    gains = state.single_gains(rows)
    size = min(_POOL, gains[0].shape[1])
    left, right = (side.topk(size, dim=1, largest=False, sorted=False).indices for side in gains)
    change = _pair_changes(state, rows, left, right, gains)
    found = []
    for _ in range(min(_SEVERAL, size)):  # the best pairs that share no column
        gain, index = change.flatten(1).min(dim=1)
        line, column = (index // size).unsqueeze(1), (index % size).unsqueeze(1)
        found.append((gain, left.gather(1, line).squeeze(1), right.gather(1, column).squeeze(1)))
        change.scatter_(1, line.unsqueeze(2).expand(-1, 1, size), torch.inf)
        change.scatter_(2, column.unsqueeze(1).expand(-1, size, 1), torch.inf)
    gain, prune, restore = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
    return _best_prefix(state, rows, gain, prune, restore)


def exact_search(state: ExchangeState, rows: Tensor) -> Moves:
    """Return an exchange that helps for each of ``rows``, if any of ALL pairs does, without looking at most pairs.

    With ρ a bound on their correlation, 2 |Q_up| ≤ ρ_u q_u + ρ_p q_p, so a pair helps only if
    (a_u − ρ_u q_u) + (b_p − ρ_p q_p) is negative: the two sides separate, and most columns drop out at once. Pairs of
    neighbouring columns are looked at one by one; all others are bounded by the smaller correlations outside.
    """
    gains = state.single_gains(rows)
    moves = _near_search(state, rows, gains)
    # Any exchange that helps will do, so the expensive half is for the rows without one.
    rest = (moves.gain >= -state.tolerance()[rows]).nonzero().squeeze(1)
    if len(rest):
        far = _far_search(state, rows[rest], (gains[0][rest], gains[1][rest]))
        moves.gain[rest], moves.prune[rest], moves.restore[rest] = far.gain, far.prune, far.restore
    return moves


def _near_search(state: ExchangeState, rows: Tensor, gains: tuple[Tensor, Tensor]) -> Moves:
    """Return the best exchange of each of ``rows`` among all pairs of a column and one of its neighbours."""
    neighbours = state.problem.neighbours.index
    kept = state.mask[rows]
    alone = torch.where(kept, *gains)  # (R, cols)
    gain = alone.new_zeros(len(rows))
    chosen = torch.zeros(len(rows), 2, dtype=torch.long, device=rows.device)
    for partner in neighbours.T.contiguous():  # (cols,): one neighbour of every column
        change = state.problem.coupling_with(rows, partner).mul_(-2)
        change += alone
        change += alone[:, partner]
        change.masked_fill_(kept == kept[:, partner], torch.inf)
        least, column = change.min(dim=1)
        chosen = torch.where((least < gain).unsqueeze(1), torch.stack([column, partner[column]], dim=1), chosen)
        gain = torch.minimum(gain, least)
    first_kept = kept.gather(1, chosen[:, :1]).squeeze(1)
    one, other = chosen.unbind(dim=1)
    return Moves(gain, torch.where(first_kept, one, other), torch.where(first_kept, other, one))


def _far_search(state: ExchangeState, rows: Tensor, gains: tuple[Tensor, Tensor]) -> Moves:
    """Return the best exchange of each of ``rows`` among the pairs that the bound outside neighbours leaves open."""
    slack = state.problem.slack(rows)
    low_prune, low_restore = gains[0] - slack, gains[1] - slack
    limit = -state.tolerance()[rows].unsqueeze(1)
    left_ok = low_prune + low_restore.amin(dim=1, keepdim=True) < limit
    right_ok = low_restore + low_prune.amin(dim=1, keepdim=True) < limit
    moves = Moves(low_prune.new_zeros(len(rows)), torch.zeros_like(rows), torch.zeros_like(rows))
    left_count, right_count = left_ok.sum(dim=1), right_ok.sum(dim=1)
    # Rows of like size go together, so that padding costs little.
    order = (left_count * right_count).argsort(descending=True)
    for part, left_size, right_size in _batches(order, left_count[order].tolist(), right_count[order].tolist()):
        left = low_prune[part].topk(left_size, dim=1, largest=False, sorted=False).indices
        right = low_restore[part].topk(right_size, dim=1, largest=False, sorted=False).indices
        best = _best_pair(state, rows[part], left, right, (gains[0][part], gains[1][part]))
        moves.gain[part], moves.prune[part], moves.restore[part] = best.gain, best.prune, best.restore
    return moves


def _batches(order: Tensor, left: list[int], right: list[int]) -> Iterator[tuple[Tensor, int, int]]:
    """Split rows, largest first, into batches of at most ``_PAIRS`` padded pairs; rows without pairs are left out."""
    start = 0
    while start < len(order) and left[start] * right[start]:
        stop, left_size, right_size = start + 1, left[start], right[start]
        while stop < len(order) and left[stop] * right[stop]:
            wider_left, wider_right = max(left_size, left[stop]), max(right_size, right[stop])
            if wider_left * wider_right * (stop + 1 - start) > _PAIRS:
                break
            left_size, right_size, stop = wider_left, wider_right, stop + 1
        yield order[start:stop], left_size, right_size
        start = stop


def group_search(state: ExchangeState, rows: Tensor, coupling: Tensor) -> Moves:
    """Return the best exchange inside a group for each of ``rows``, over all pairs of all groups.

    Args:
        state: the masks.
        rows: (R,) indices.
        coupling: (rows, groups, group, group), Q inside groups.
    """
    prune, restore = state.single_gains(rows)
    _, groups, group, _ = coupling.shape
    left, right = prune.view(-1, groups, group, 1), restore.view(-1, groups, 1, group)
    change = (left + right - 2 * coupling[rows]).flatten(2)  # (R, groups, group * group)
    best, index = change.min(dim=2)  # of each group
    gain, chosen = best.topk(min(_SEVERAL, groups), dim=1, largest=False)
    index = index.gather(1, chosen)
    return _best_prefix(state, rows, gain, chosen * group + index // group, chosen * group + index % group)


def _best_prefix(state: ExchangeState, rows: Tensor, gain: Tensor, prune: Tensor, restore: Tensor) -> Moves:
    """Return as many of each row's exchanges, in order, as are best together.

    Two exchanges d_i = e_restore − e_prune made together change the objective by the sum of their gains + 2 d_iᵀ Q d_j.

    Args:
        state: the masks.
        rows: (R,) indices.
        gain: (R, B) change by each exchange alone, +∞ where there is none.
        prune: (R, B) columns, all different in a row.
        restore: (R, B) columns, all different in a row.
    """
    size = gain.shape[1]
    columns = torch.cat([restore, prune], dim=1)
    coupling = state.problem.coupling(rows, columns, columns).view(-1, 2, size, 2, size)
    together = coupling[:, 0, :, 0] + coupling[:, 1, :, 1] - coupling[:, 0, :, 1] - coupling[:, 1, :, 0]
    total, last = (gain + 2 * together.triu(1).sum(dim=1)).cumsum(dim=1).min(dim=1)
    return Moves(total, prune, restore, last + 1)


def _best_pair(state: ExchangeState, rows: Tensor, left: Tensor, right: Tensor, gains: tuple[Tensor, Tensor]) -> Moves:
    """Evaluate ``left`` (R, K) x ``right`` (R, L) candidates and return the best of each row."""
    gain, index = _pair_changes(state, rows, left, right, gains).flatten(1).min(dim=1)
    width = right.shape[1]
    return Moves(
        gain,
        left.gather(1, (index // width).unsqueeze(1)).squeeze(1),
        right.gather(1, (index % width).unsqueeze(1)).squeeze(1),
    )


def _pair_changes(
    state: ExchangeState, rows: Tensor, left: Tensor, right: Tensor, gains: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the change by pruning each of ``left`` (R, K) and restoring each of ``right`` (R, L): (R, K, L)."""
    prune, restore = gains
    change = state.problem.coupling(rows, left, right).mul_(-2)
    change += prune.gather(1, left).unsqueeze(2)
    change += restore.gather(1, right).unsqueeze(1)
    return change
