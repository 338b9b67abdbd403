"""1-swap descent of one block of rows: what ``swap`` does, and what ``ils`` begins with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from relaxprune.problems import Problem

from ...base import Answer, Counts, Run, Status, worse
from .gains import Descent, Moves
from .group_masks import GroupMasks, mask_search, tile_mask_search, tile_masks
from .interchange import tile_search
from .pair_search import exact_search, group_search, pool_search

BandSearch = Callable[[Tensor], tuple[Tensor, Moves, Tensor]]

_MATRICES = 18  # held at once, groups left out


def descend(problem: Problem, run: Run) -> Answer:
    """Descend from ``run.start``, block of rows by block of rows; ``max_iterations`` bounds the rounds of each."""
    mask = run.start.clone()
    answer = Answer(mask)
    for part, piece in problem.split(matrices(problem), run.memory_bytes):
        search = Search(piece, mask[part], run, answer.counts)
        search.descend()
        if search.descent.finite():
            mask[part] = search.descent.mask
        else:
            search.status = Status.NOT_FINITE
        answer.counts.products += search.products * (part.stop - part.start) / problem.shape[0]
        answer.status = worse(answer.status, search.status)
    answer.counts.iterations = answer.counts.swap_rounds
    return answer


def matrices(problem: Problem) -> int:
    """Return how many float64 tensors of the problem's shape a descent holds at once."""
    return _MATRICES + group_matrices(problem)


def group_matrices(problem: Problem) -> int:
    """Return how many of them couplings inside groups amount to: one a column, what is made of them twice that."""
    group = problem.polytope.group_size(problem.shape)
    return 3 * group if group < problem.shape[1] else 0


class Search:
    """Descends one block of rows: an exchange at a time, until none of all pairs helps or a budget ends.

    With ``quick`` only the cheapest entries of each row are looked at, which finds nearly all that there is to find in
    a fraction of the time.
    """

    def __init__(self, problem: Problem, mask: Tensor, run: Run, counts: Counts, quick: bool = False) -> None:
        self.working = problem.working(torch.float64)
        self.polytope, self.shape = problem.polytope, problem.shape
        self.descent = Descent(self.working, mask)
        self.run, self.counts, self.quick = run, counts, quick
        # Every move lowers the objective, so the descent ends; the cap is against rounding noise alone.
        self.rounds_left = run.max_iterations if run.max_iterations is not None else 100 * sum(self.shape)
        self.status = Status.CONVERGED
        self.products = 1
        group = self.polytope.group_size(self.shape)
        grouped = group < self.shape[1] or self.polytope.counts_columns()
        self.group_coupling = self.working.group_coupling(group) if grouped else None
        self.group_masks = None if self.group_coupling is None else GroupMasks.of(self.polytope, self.group_coupling)
        self.tile_masks = None
        if self.group_masks is not None and self.polytope.counts_columns():
            self.tile_masks = tile_masks(self.group_masks, self.polytope.cells(self.shape)[1])

    def descend(self) -> None:
        """Descend, and once more where rounding left by the moves may hide a gain, until none helps."""
        rows = self.descent.everything
        while len(rows) and not self._stopped():
            before = self.counts.swaps
            self._descend(rows)
            if self.counts.swaps == before or self.quick:
                break
            self.products += 1
            rows = self.descent.refresh()

    def _descend(self, rows: Tensor) -> None:
        """Alternate kinds of moves until none helps or the budget ends; the first exchanges are in ``rows``."""
        if self.polytope.counts_columns():
            self._interchange()
            return
        coupled, at_most = self.polytope.rows_per_block(self.shape) > 1, self.polytope.is_at_most()
        while True:
            moved = self._within_rows(rows)
            if coupled:
                moved += self._across_rows()
            if at_most:
                moved += self._singles(self.descent.everything)
            if not moved or not (coupled or at_most) or self._stopped():
                return
            rows = self.descent.everything

    def _stopped(self) -> bool:
        """Tell whether a budget has ended."""
        if self.run.expired():
            self.status = Status.TIME_LIMIT
        elif self.rounds_left <= 0:
            self.status = Status.ITERATION_LIMIT
        return self.status is not Status.CONVERGED

    def _within_rows(self, rows: Tensor) -> int:
        """Exchange inside rows until none of all pairs helps; return the number of exchanges."""
        before = self.counts.swaps
        if self.group_coupling is not None:
            self._within_groups(rows, self.group_coupling)
            return self.counts.swaps - before
        while len(rows) and not self._stopped():
            self._repeat(pool_search, rows)
            if self.quick or self._stopped():
                break
            rows = self._round(exact_search, rows)
        return self.counts.swaps - before

    def _within_groups(self, rows: Tensor, coupling: Tensor) -> None:
        """Exchange inside groups until no other mask of any group helps, or, for large groups, no exchange."""
        while len(rows) and not self._stopped():
            self._repeat(partial(group_search, coupling=coupling), rows)
            if self.group_masks is None or self._stopped():
                break
            rows = self._round(partial(mask_search, groups=self.group_masks), rows)

    def _repeat(self, search: Callable[[Descent, Tensor], Moves], rows: Tensor) -> None:
        """Do rounds of ``search``; rows without a helpful move leave."""
        while len(rows) and not self._stopped():
            rows = self._round(search, rows)

    def _round(self, search: Callable[[Descent, Tensor], Moves], rows: Tensor) -> Tensor:
        """Apply one move per row where it helps and return those rows."""
        moves = search(self.descent, rows)
        helps = (moves.gain < -self.descent.tolerance()[rows]).nonzero().squeeze(1)
        if len(helps) < len(rows):
            rows, moves = rows[helps], moves.take(helps)
        if len(rows):
            self.descent.apply(rows, moves)
        self._count(moves.count())
        return rows

    def _interchange(self) -> None:
        """Interchange inside tiles until no interchange helps, nor, where tiles are small, any other mask of one."""
        coupling, groups, tiles = self.group_coupling, self.group_masks, self.tile_masks
        assert coupling is not None
        bands = torch.arange(self.polytope.block_count(self.shape), device=self.descent.mask.device)
        while len(bands) and not self._stopped():
            everywhere = bands
            self._repeat_bands(partial(tile_search, self.descent, coupling=coupling), bands)
            if groups is None or tiles is None or self._stopped():
                break
            search = partial(tile_mask_search, self.descent, groups=groups, tiles=tiles)
            bands = self._round_bands(search, everywhere)

    def _repeat_bands(self, search: BandSearch, bands: Tensor) -> None:
        """Do rounds of ``search``; bands without a helpful move leave."""
        while len(bands) and not self._stopped():
            bands = self._round_bands(search, bands)

    def _round_bands(self, search: BandSearch, bands: Tensor) -> Tensor:
        """Apply the moves of ``search`` in ``bands`` and return the bands that had any."""
        rows, moves, bands = search(bands)
        self.descent.apply(rows, moves)
        self._count(moves.count() // 2 if moves.length is None else moves.count())
        return bands

    def _count(self, moves: int) -> None:
        """Account for one round."""
        self.counts.swaps += moves
        self.counts.swap_rounds += 1
        self.rounds_left -= 1

    def _across_rows(self) -> int:
        """Prune in one row and restore in another, many disjoint pairs of rows at once; return the exchanges."""
        descent = self.descent
        everything = self.descent.everything
        total = 0
        while self.shape[0] > 1 and not self._stopped():
            prune, restore = descent.single_gains(everything)
            prune_gain, prune_column = prune.min(dim=1)
            restore_gain, restore_column = restore.min(dim=1)
            donors, takers = _pair_rows(prune_gain, restore_gain, float(descent.tolerance().sum()))
            if not len(donors):
                break
            givers = torch.cat([donors, takers])
            columns = torch.cat([prune_column[donors], restore_column[takers]]).unsqueeze(1)
            change = torch.ones_like(columns)
            change[: len(donors)] = -1
            descent.flip(givers, columns, change)
            descent.objective[donors] += prune_gain[donors]
            descent.objective[takers] += restore_gain[takers]
            self._count(len(donors))
            total += len(donors)
        return total

    def _singles(self, rows: Tensor) -> int:
        """For "at most" sets: prune or restore a single entry where that alone helps; return the moves."""
        descent, coupled = self.descent, self.polytope.rows_per_block(self.shape) > 1
        total = 0
        for restoring in (False, True):
            while not self._stopped():
                prune, restore = descent.single_gains(rows)
                if restoring:
                    restore.masked_fill_(~self.polytope.room(descent.mask), torch.inf)
                gain, column = (restore if restoring else prune).min(dim=1)
                helps = (gain < -descent.tolerance()).nonzero().squeeze(1)
                if not len(helps):
                    break
                # Rows that share a count take turns, so that the count is never exceeded.
                chosen = gain[helps].argmin().unsqueeze(0) if coupled else torch.arange(len(helps), device=rows.device)
                helps = helps[chosen]
                columns = column[helps].unsqueeze(1)
                descent.flip(helps, columns, torch.full_like(columns, 1 if restoring else -1))
                descent.objective[helps] += gain[helps]
                self._count(len(helps))
                total += len(helps)
        return total


def _pair_rows(prune_gain: Tensor, restore_gain: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Match rows to prune in with other rows to restore in, each row used once, so that every pair helps.

    Rows that are cheap to prune and dear to restore give, the others take. When no such pair helps, the single best
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
