"""1-swap descent of some rows: all of ``swap``, the beginning of ``ils`` and the refining of ``fw``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from relaxprune.problems import Problem

from ...base import CHECK_EVERY, Answer, Counts, Run, Status
from ...driver import Band
from .across import exchange_across, move_single
from .gains import ExchangeState, Moves
from .group_masks import GroupMasks, mask_search, tile_mask_search, tile_masks
from .interchange import tile_search
from .pair_search import exact_search, group_search, pool_search

RowSearch = Callable[[ExchangeState, Tensor], Moves]
BlockSearch = Callable[[Tensor], tuple[Tensor, Moves, Tensor]]
Report = Callable[[int, float, int], None]

_MATRICES = 18  # held at once, groups left out


def descend(band: Band[Problem], rounds: int | None) -> Answer:
    """Descend from the start of a band; ``rounds`` bounds the rounds of moves, which count as iterations."""
    descent = Descent(band.problem, replace(band.run, max_iterations=rounds), report=band.report)
    descent.descend()
    descent.counts.iterations = descent.counts.swap_rounds
    status = descent.status if descent.state.finite() else Status.NOT_FINITE
    return Answer(descent.state.mask, status=status, counts=descent.counts)


def matrices(problem: Problem) -> int:
    """Return how many float64 tensors of the problem's shape a descent holds at once."""
    return _MATRICES + group_matrices(problem)


def group_matrices(problem: Problem) -> int:
    """Return the size of couplings inside groups, in such tensors: one a column, and twice that for temporaries."""
    group = problem.polytope.group_size(problem.shape)
    return 3 * group if group < problem.shape[1] else 0


class Descent:
    """Move from a mask, an exchange at a time, until no pair helps or a budget ends.

    Args:
        problem: the problem of the rows.
        run: gives the start, the rounds (``max_iterations``) and the time.
        quick: look only at the cheapest entries of each row, which finds nearly all of the gain in a fraction of the
            time.
        report: called with the rounds, the products and the coupled blocks still at work, every ``CHECK_EVERY`` rounds.

    Attributes:
        state: the masks.
        counts: what it cost; products in matrices of these rows.
        status: CONVERGED, or the budget that ended first.
    """

    def __init__(self, problem: Problem, run: Run, quick: bool = False, report: Report | None = None) -> None:
        self.working = problem.working(torch.float64)
        self.polytope, self.shape = problem.polytope, problem.shape
        self.state = ExchangeState(self.working, run.start)
        self.run, self.quick, self.report = run, quick, report
        self.coupled = self.polytope.rows_per_block(self.shape) > 1
        self.at_work = self.polytope.block_count(self.shape)
        # Every move lowers the objective, so the descent ends; the cap is against rounding noise alone.
        self.rounds_left = run.max_iterations if run.max_iterations is not None else 100 * sum(self.shape)
        self.status, self.counts = Status.CONVERGED, Counts(products=1)
        group = self.polytope.group_size(self.shape)
        grouped = group < self.shape[1] or self.polytope.counts_columns()
        self.group_coupling = self.working.group_coupling(group) if grouped else None
        self.group_masks = None if self.group_coupling is None else GroupMasks.of(self.polytope, self.group_coupling)
        self.tile_masks = None
        if self.group_masks is not None and self.polytope.counts_columns():
            self.tile_masks = tile_masks(self.group_masks, self.polytope.cells(self.shape)[1])

    def descend(self) -> None:
        """Descend, and again where rounding errors of the moves may hide a gain, until no move helps."""
        rows = self.state.everything
        while len(rows) and not self._stopped():
            before = self.counts.swaps
            self._descend(rows)
            if self.counts.swaps == before or self.quick:
                break
            self.counts.products += 1
            rows = self.state.refresh()

    def _descend(self, rows: Tensor) -> None:
        """Alternate kinds of moves until none helps or the budget ends; the first exchanges are in ``rows``."""
        if self.polytope.counts_columns():
            self._interchange()
            return
        at_most = self.polytope.is_at_most()
        while True:
            before = self.counts.swaps
            self._within_rows(rows)
            if self.coupled and self.shape[0] > 1 and not self.working.couples:  # a count of several rows
                self._repeat(partial(exchange_across, self.state))
            if at_most:
                for restoring in (False, True):
                    self._repeat(partial(move_single, self.state, restoring, self.coupled))
            if self.counts.swaps == before or not (self.coupled or at_most) or self._stopped():
                return
            rows = self.state.everything

    def _stopped(self) -> bool:
        """Return whether a budget has ended."""
        if self.run.expired():
            self.status = Status.TIME_LIMIT
        elif self.rounds_left <= 0:
            self.status = Status.ITERATION_LIMIT
        return self.status is not Status.CONVERGED

    def _within_rows(self, rows: Tensor) -> None:
        """Exchange inside rows until no pair helps."""
        if self.group_coupling is not None:
            self._within_groups(rows, self.group_coupling)
            return
        while len(rows) and not self._stopped():
            self._leave(rows)
            self._repeat_rows(pool_search, rows)
            if self.quick or self._stopped():
                break
            rows = self._round(exact_search, rows)

    def _within_groups(self, rows: Tensor, coupling: Tensor) -> None:
        """Exchange inside groups until no other mask of any group helps, or, for large groups, no exchange."""
        while len(rows) and not self._stopped():
            self._leave(rows)
            self._repeat_rows(partial(group_search, coupling=coupling), rows)
            if self.group_masks is None or self._stopped():
                break
            rows = self._round(partial(mask_search, groups=self.group_masks), rows)

    def _leave(self, rows: Tensor) -> None:
        """Note which rows are active, if each is a coupled block."""
        if not self.coupled:
            self.at_work = len(rows)

    def _repeat_rows(self, search: RowSearch, rows: Tensor) -> None:
        """Do rounds of ``search``; rows without a helpful move leave."""
        while len(rows) and not self._stopped():
            rows = self._round(search, rows)

    def _round(self, search: RowSearch, rows: Tensor) -> Tensor:
        """Apply one move in each row that it helps, and return those rows."""
        moves = search(self.state, rows)
        helps = (moves.gain < -self.state.tolerance()[rows]).nonzero().squeeze(1)
        if len(helps) < len(rows):
            rows, moves = rows[helps], moves.take(helps)
        active = rows
        if len(rows) and self.working.couples:
            rows, moves = self.state.together(rows, moves)
            self.counts.products += len(rows) / self.shape[0]
        if len(rows):
            self.state.apply(rows, moves)
        self._count(moves.count())
        return active

    def _interchange(self) -> None:
        """Interchange inside tiles until no interchange helps and, for small tiles, no other mask of a tile."""
        coupling, groups, tiles = self.group_coupling, self.group_masks, self.tile_masks
        assert coupling is not None
        blocks = torch.arange(self.polytope.block_count(self.shape), device=self.state.mask.device)
        while len(blocks) and not self._stopped():
            everywhere, self.at_work = blocks, len(blocks)
            self._repeat_blocks(partial(tile_search, self.state, coupling=coupling), blocks)
            if groups is None or tiles is None or self._stopped():
                break
            search = partial(tile_mask_search, self.state, groups=groups, tiles=tiles)
            blocks = self._round_blocks(search, everywhere)

    def _repeat_blocks(self, search: BlockSearch, blocks: Tensor) -> None:
        """Do rounds of ``search``; blocks without a helpful move leave."""
        while len(blocks) and not self._stopped():
            blocks = self._round_blocks(search, blocks)

    def _round_blocks(self, search: BlockSearch, blocks: Tensor) -> Tensor:
        """Apply the moves of ``search`` in ``blocks`` and return the blocks that had any."""
        rows, moves, blocks = search(blocks)
        self.state.apply(rows, moves)
        self._count(moves.count() // 2 if moves.length is None else moves.count())
        return blocks

    def _repeat(self, move: Callable[[], int]) -> None:
        """Do rounds of moves anywhere until none helps."""
        while not self._stopped() and (moves := move()):
            self._count(moves)

    def _count(self, moves: int) -> None:
        """Count one round, and report now and then."""
        self.counts.swaps += moves
        self.counts.swap_rounds += 1
        self.rounds_left -= 1
        if self.report is not None and self.counts.swap_rounds % CHECK_EVERY == 0:
            self.report(self.counts.swap_rounds, self.counts.products, self.at_work)
