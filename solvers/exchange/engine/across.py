"""Moves that change what a row keeps: exchanges between two rows that share a count, and single entries."""

from __future__ import annotations

import torch
from torch import Tensor

from .gains import ExchangeState


def exchange_across(state: ExchangeState) -> int:
    """Prune in one row and restore in another, many disjoint pairs of rows at once; return the number of pairs."""
    prune, restore = state.single_gains(state.everything)
    prune_gain, prune_column = prune.min(dim=1)
    restore_gain, restore_column = restore.min(dim=1)
    donors, takers = _pair_rows(prune_gain, restore_gain, float(state.tolerance().sum()))
    if not len(donors):
        return 0
    rows = torch.cat([donors, takers])
    columns = torch.cat([prune_column[donors], restore_column[takers]]).unsqueeze(1)
    change = torch.ones_like(columns)
    change[: len(donors)] = -1
    state.flip(rows, columns, change)
    state.objective[donors] += prune_gain[donors]
    state.objective[takers] += restore_gain[takers]
    return len(donors)


def move_single(state: ExchangeState, restoring: bool, coupled: bool) -> int:
    """Prune or restore one entry of each row if that alone helps and the set allows it; return the moves.

    Args:
        state: the masks.
        restoring: whether to restore, where there is room, instead of pruning.
        coupled: whether rows share a count; they then take turns, so that it is never exceeded.
    """
    prune, restore = state.single_gains(state.everything)
    if restoring:
        restore.masked_fill_(~state.problem.polytope.room(state.mask), torch.inf)
    gain, column = (restore if restoring else prune).min(dim=1)
    helps = (gain < -state.tolerance()).nonzero().squeeze(1)
    if not len(helps):
        return 0
    if coupled:
        helps = helps[gain[helps].argmin().unsqueeze(0)]
    columns = column[helps].unsqueeze(1)
    state.flip(helps, columns, torch.full_like(columns, 1 if restoring else -1))
    state.objective[helps] += gain[helps]
    return len(helps)


def _pair_rows(prune_gain: Tensor, restore_gain: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Match rows to prune in with other rows to restore in, each row used once, so that every pair helps.

    Rows that are cheap to prune and expensive to restore give, the others take. If no such pair helps, the single best
    pair of different rows is returned, or none at all: then no exchange across rows helps.
    """
    order = (prune_gain - restore_gain).nan_to_num(nan=0.0).argsort()
    half = len(order) // 2
    donors, takers = order[:half], order[len(order) - half :]
    donors = donors[prune_gain[donors].argsort()]
    takers = takers[restore_gain[takers].argsort()]
    helps = prune_gain[donors] + restore_gain[takers] < -tolerance
    if bool(helps.any()):
        return donors[helps], takers[helps]
    best_prune, best_restore = prune_gain.argsort()[:2], restore_gain.argsort()[:2]
    pairs = [(i, j) for i in best_prune.tolist() for j in best_restore.tolist() if i != j]
    i, j = min(pairs, key=lambda pair: float(prune_gain[pair[0]] + restore_gain[pair[1]]))
    if not bool(prune_gain[i] + restore_gain[j] < -tolerance):
        return order[:0], order[:0]
    return torch.tensor([i], device=order.device), torch.tensor([j], device=order.device)
