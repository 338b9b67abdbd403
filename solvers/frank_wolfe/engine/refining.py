"""Annealing again from the best mask, and crossing the result with that mask.

A longer annealing soon stops gaining. Another annealing from the best mask, with a little noise on the diagonal that it
follows, finds another mask, better in some rows; each row keeps its better one. Two good masks of a row differ in few
entries, and annealing these alone, several times side by side, finds masks better than both: a crossing of two
solutions, as in memetic search (Moscato, 1989).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from relaxprune.problems import Problem, Working

from ...base import CHECK_EVERY, Counts, Status, worse
from ...driver import Band
from ...exchange.engine.descent import Descent
from ...exchange.engine.gains import ExchangeState
from .annealing import Annealing, Schedule
from .restricted import Entries

MATRICES = 26  # (rows, cols) float64 tensors held at once
_NOISE = 0.2  # of the diagonal, standard deviation
_COPIES = 8  # annealings side by side of the entries in question
_TILT = 0.5  # of the diagonal, standard deviation, added to the half gradient at first
_OTHERS = 3  # masks of the last rounds, with which the best ones are crossed
_CROSSING = 50  # iterations of each


class Refinement:
    """The best masks of one band of rows so far, and rounds that improve them.

    Args:
        band: the rows; their reported counts go on.
        working: the copy of their problem that annealing computes with.
        start: (rows, cols) bool, feasible.

    Attributes:
        counts: what it cost; products in matrices of this band.
        status: CONVERGED, or what ended the search early; NOT_FINITE if a computation broke down.
    """

    def __init__(self, band: Band[Problem], working: Working, start: Tensor) -> None:
        """Descend from the start."""
        self.band, self.problem, self.working = band, band.problem, working
        self.before = band.iteration, band.products
        self.generator = torch.Generator().manual_seed(band.run.seed)  # on the host: alike on every device
        self.counts = Counts()
        self.status = Status.CONVERGED
        self.stale = False  # whether noise on the diagonal led most rows to the same mask again, as in short ones
        polytope, shape = self.problem.polytope, self.problem.shape
        self.height = polytope.rows_per_block(shape)
        # Entries of one row can be looked at alone if its counts are its own.
        self.crosses = self.height == 1 and polytope.separable(shape)
        self.best = self._descended(self.problem, start)
        self.others: list[Tensor] = []  # (rows, cols) bool each

    @property
    def mask(self) -> Tensor:
        """The best masks, (rows, cols) bool."""
        return self.best.mask

    @property
    def blocks(self) -> int:
        """The number of coupled blocks."""
        return len(self.mask) // self.height

    def round(self, schedule: Schedule) -> None:
        """Anneal from the best masks, keep the better of each coupled block, and cross the two."""
        self.best.refresh()  # moves leave what large entries have rounded away, and masks are compared by it
        self.counts.products += 1
        mask = self._annealed(schedule)
        if mask is None:
            return
        found = self._descended(self.problem, mask)
        before = self.mask.clone()
        self.stale = not self.stale and 2 * int((found.mask != before).any(dim=1).sum()) < len(before)
        better = self._keep(found, self.best.everything)
        if not self.crosses or self._expired():
            return
        self.others = [*self.others, torch.where(better.unsqueeze(1), before, found.mask)][-_OTHERS:]
        differs = torch.stack([other != self.mask for other in self.others]).any(dim=0)
        lines = differs.any(dim=1).nonzero().squeeze(1)
        # Lines of like size go together, as many as fit in memory.
        lines = lines[differs[lines].sum(dim=1).argsort(stable=True)]
        differs = differs[lines]
        for part in Entries.batches(self.problem, differs, _COPIES, self.band.run.memory_bytes):
            self._cross(lines[part], differs[part])

    def _expired(self) -> bool:
        """Return whether the deadline has passed or a computation broke down."""
        if self.band.run.expired():
            self.status = worse(self.status, Status.TIME_LIMIT)
        return self.status is not Status.CONVERGED

    def _annealed(self, schedule: Schedule) -> Tensor | None:
        """Return the mask of another annealing from the best one, or None if it was not finished."""
        working = self.working
        concave = working.diagonal * (1 + _NOISE * self._noise(working.shape[1]))
        tilt = working.diagonal * (_TILT * self._noise(working.shape[1])) if self.stale else None
        state = Annealing(working, self.mask.to(concave.dtype), schedule, concave=concave, tilt=tilt)
        counted = 0
        for number in range(1, schedule.iterations + 1):
            state.step(working)
            if number % CHECK_EVERY == 0 or number == schedule.iterations:
                self.counts.products += state.product_count - counted
                self.counts.iterations += (number - 1) % CHECK_EVERY + 1
                counted = state.product_count
                iterations, products = self.before
                self.band.report(iterations + self.counts.iterations, products + self.counts.products, self.blocks)
                if self._expired() and number < schedule.iterations:
                    return None
        if not bool(state.finite()):
            self.status = Status.NOT_FINITE
            return None
        return self.problem.polytope.round(state.point())

    def _cross(self, lines: Tensor, differs: Tensor) -> None:
        """Anneal the entries where masks of ``lines`` (R,) differ, (R, cols) bool, and keep better masks."""
        entries = Entries(self.best, lines, differs)
        if not entries.columns.shape[1]:
            return
        part = entries.problem(self.working, _COPIES)
        width = part.shape[1]
        noise = _NOISE * self._noise(_COPIES, width)
        noise[0] = 0  # one copy follows the diagonal itself
        concave = (part.diagonal.view(-1, _COPIES, width) * (1 + noise)).view(part.shape)
        state = Annealing(part, part.mask, Schedule(_CROSSING), concave=concave)
        for _ in range(_CROSSING):
            state.step(part)
        mask = part.polytope.round(state.point())
        change, copy = part.change(mask.to(concave.dtype)).view(-1, _COPIES).min(dim=1)
        rows, cols = self.working.shape
        self.counts.products += state.product_count * _COPIES * len(lines) / rows * (width / cols) ** 2
        if not bool(state.finite()):
            self.status = Status.NOT_FINITE
            return
        helps = (change < 0).nonzero().squeeze(1)
        if not len(helps):
            return
        chosen = mask.view(-1, _COPIES, width)[helps, copy[helps]]
        lines = lines[helps]
        crossed = self.mask[lines].scatter_(1, entries.columns[helps], chosen)
        self._keep(self._descended(self.problem.rows(lines), crossed), lines)

    def _noise(self, *shape: int) -> Tensor:
        """Return normal numbers, the same in every dtype and for all rows, so that splitting rows matters little."""
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float32)
        return drawn.to(self.working.diagonal)

    def _descended(self, problem: Problem, mask: Tensor) -> ExchangeState:
        """Return where a quick descent leads from ``mask``, of some rows."""
        descent = Descent(problem, replace(self.band.run, start=mask, max_iterations=None), quick=True)
        descent.descend()
        self.status = worse(self.status, descent.status)
        self.counts.swaps += descent.counts.swaps
        self.counts.swap_rounds += descent.counts.swap_rounds
        self.counts.products += descent.counts.products * problem.shape[0] / self.problem.shape[0]
        return descent.state

    def _keep(self, found: ExchangeState, lines: Tensor) -> Tensor:
        """Take the masks ``found`` for ``lines`` (R,), whole coupled blocks, of lower objective: (R,) bool, which."""
        best = self.best
        change = (found.objective - best.objective[lines]).view(-1, self.height).sum(dim=1)
        better = (change < 0).repeat_interleave(self.height)
        won = lines[better]
        best.mask[won] = found.mask[better]
        best.half_gradient[won] = found.half_gradient[better]
        best.objective[won] = found.objective[better]
        return better
