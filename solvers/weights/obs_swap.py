"""Exchanges of a kept and a pruned weight, judged by the error after refitting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import MaskProblem, Problem, RelaxPruneError

from ..base import CHECK_EVERY, Answer, Counts, Published, Run, Solver, Status, needs_weights
from ..driver import Band, Driver
from .engine.obs_tableau import PAIR_TENSORS, Tableau

_TOLERANCE = 1e-9  # of a row's error: below it, an exchange is not worth a move
_RIDGE = 1e-9  # of the unit diagonal, so that supports of a singular Gram can be factorised
_POOL = 24  # entries of the support to look at first: those cheapest to prune
_REFRESH = 100  # moves of a row between factorisations from scratch


@dataclass(frozen=True)
class ObsSwap(Solver):
    """Descend from the start mask by exchanges that lower the least-squares error, until no pair does.

    What an exchange costs after refitting follows from the inverse of the Gram on the support (Optimal Brain Surgeon,
    Hassibi and Stork, 1992), for all pairs of a row at once. Exchanges stay inside rows, and inside groups for N:M. It
    improves masks that no exchange improves with the weights as they are, and the reverse.

    A row takes one factorisation of the size of its support, then two rank-one updates a move, so the cost grows with
    the columns cubed: for layers of up to about two thousand columns. Everything is float64.
    """

    name: ClassVar[str] = "obs-swap"
    summary: ClassVar[str] = "exchanges judged by the error after refitting; for weights that move"
    default_polish: ClassVar[str | None] = None
    honours: ClassVar[frozenset[str]] = frozenset({"start", "max_iterations", "time_limit_s"})
    polishes: ClassVar[bool] = True
    needs_moving_weights: ClassVar[bool] = True
    published: ClassVar[Published] = Published(weights="refit")
    only_images: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        """Refuse a problem without weight and Gram, counts along columns, and counts that are "at most"."""
        needs_weights(self.name, problem)
        if problem.polytope.is_at_most():
            raise RelaxPruneError(
                "solver 'obs-swap' exchanges entries one for one, which needs exact counts, not \"at most\"; "
                "use reconstruct or alps"
            )
        if not problem.polytope.separable(problem.shape):
            raise RelaxPruneError(
                f"solver 'obs-swap' moves inside rows, which a {problem.polytope.label} set does not allow; "
                "use reconstruct or alps"
            )

    def least_bytes(self, problem: Problem) -> int:
        """Return the bytes of one row."""
        return row_bytes(problem.shape[1], problem.shape[1] // 2)

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return 0: there are as many rounds as moves to make."""
        return 0

    def run(self, problem: Problem, run: Run) -> Answer:
        """Descend from ``run.start``; ``max_iterations`` bounds the moves of each row."""
        layer = needs_weights(self.name, problem)
        gram = layer.prepared
        matrix = gram.full_correlation()
        matrix.diagonal().add_(_RIDGE)
        matrix /= 1 + _RIDGE
        root = gram.diagonal.to(torch.float64).sqrt()
        size = layer.polytope.group_size(layer.shape)
        group = None if size >= layer.shape[1] else size

        def descended(band: Band[MaskProblem]) -> Answer:
            target = band.problem.weight.to(torch.float64) * root
            return _descend(Tableau(target, matrix, band.run.start, group, _fixed(band.problem)), band)

        free = layer.over(layer.polytope.loosened())  # each row alone
        batches = _batches(run.start, run.memory_bytes)
        return Driver(self.name, run, ((rows, free.rows(rows)) for rows in batches)).sweep(descended)


def _descend(table: Tableau, band: Band[MaskProblem]) -> Answer:
    """Move until no exchange helps in any row of a band; rows that are done leave."""
    cols, rows = table.size, band.problem.shape[0]
    # A factorisation, an inverse and a product with it; then two rank-one updates of both.
    start_cost = (table.count**3 + table.count**2 * (cols - table.count)) / cols**2
    move_cost = 2 * table.count * cols / cols**2
    answer = Answer(band.run.start.clone(), counts=Counts(products=start_cost))
    answer.status = Status.ITERATION_LIMIT if table.finite() else Status.NOT_FINITE
    counts, most = answer.counts, 4 * cols if band.run.max_iterations is None else band.run.max_iterations
    while answer.status is Status.ITERATION_LIMIT and counts.iterations < most:
        helps, moves = _helpful(table)
        if not len(helps):
            answer.status = Status.CONVERGED
            break
        table.exchange(helps, *moves)
        answer.point[helps] = table.mask(helps)
        counts.iterations += 1
        counts.swap_rounds += 1
        counts.swaps += len(helps)
        counts.products += move_cost * len(helps) / rows
        if counts.iterations % _REFRESH == 0:
            table.refresh()
            counts.products += start_cost
        if not table.finite():
            answer.status = Status.NOT_FINITE
        elif band.run.expired():
            answer.status = Status.TIME_LIMIT
        elif counts.iterations % CHECK_EVERY == 0:
            band.report(counts.iterations, counts.products, len(helps))
    return answer


def _helpful(table: Tableau) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return the rows that an exchange helps, (R,), and for each the places that leave and enter, and the change.

    Few entries are looked at first, and all only if they help no row: a row ends after a look at all pairs.
    """
    for pool in (_POOL, None):
        change, leave, enter = table.best(pool)
        helps = (change < -_TOLERANCE * table.error.clamp(min=0)).nonzero().squeeze(1)
        if len(helps):
            break
    return helps, (leave[helps], enter[helps], change[helps])


def row_bytes(cols: int, count: int) -> int:
    """Return the bytes of a row with ``count`` kept of ``cols``."""
    count = min(max(count, 1), cols)
    return 8 * (2 * count**2 + (2 + PAIR_TENSORS) * count * (cols - count) + 12 * cols)


def _batches(mask: Tensor, memory_bytes: int) -> Iterator[Tensor]:
    """Yield indices (R,) of rows that keep the same number of entries, as many as fit; rows without a choice never."""
    counts = mask.sum(dim=1)
    for count in counts.unique().tolist():
        if 0 < count < mask.shape[1]:
            rows = (counts == count).nonzero().squeeze(1)
            yield from rows.split(max(1, memory_bytes // row_bytes(mask.shape[1], count)))


def _fixed(problem: MaskProblem) -> Tensor | None:
    """Return the entries that a problem fixes, (rows, cols) bool, or None."""
    entries = [part for part in problem.polytope.fixed() if part is not None]
    return torch.stack(entries).any(dim=0) if entries else None
