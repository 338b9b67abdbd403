"""A semidefinite bound for single rows, with cuts.

A row is lifted to X ≈ x xᵀ, x = (1, 1 − 2m): minimise ⟨C, X⟩ over X ⪰ 0 with unit diagonal, on the subspace of the
row's counts, with the violated ones of the triangle inequalities added while the interior-point method is still far
from the boundary. Only its dual is used: a diagonal and the multipliers of the cuts (see ``underestimator``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relaxprune.problems import Problem
from relaxprune.problems.precision import UNIT_ROUNDOFF

from .counts import row_counts
from .cuts import Cuts
from .frame import Frame
from .interior_point import InteriorPoint
from .separation import violated

_GAP = 3e-3  # of a row's objective, at which the method ends
_FIRST = 0.5  # gap at which the first cuts are added: cuts found far inside are the better ones
_EVERY = 3  # steps between rounds of cuts
_TO_END = 8  # steps that the method takes from its last cuts to its end, about
_SHARE = 0.5  # cuts of a round per column
_INACTIVE = 0.3  # multiplier over slack, in units of the mean, below which a cut is dropped
_ROUNDS, _MORE_ROUNDS, _TIMED_ROUNDS = 2, 12, 40  # of cuts: always, where columns are few, with a time limit
_CHEAP = 1200  # columns times rounds up to which more are made
_MOST_STEPS = 60
_MATRICES, _NEWTON_MATRICES = 26, 5  # of size (n + 1, n + 1), and with a line per cut besides
_ROWS_AT_ONCE = {"cpu": 1}  # more only leave the cache
_LEAST_SCALE = 1e-2
_WEIGHTS = (1e1, 1e3, 1e5, 1e7)


@dataclass(frozen=True, eq=False)
class DenseRow:
    """What proves the bound of one row.

    Attributes:
        row: its index.
        point: (cols,) float64, the point of the tangent.
        diagonal: (cols,) float64, d.
        weight: ρ.
        index, sign, multiplier: (m, 3) int64, (m, 3) int8 and (m,) float64, the cuts.
    """

    row: int
    point: Tensor
    diagonal: Tensor
    weight: float
    index: Tensor
    sign: Tensor
    multiplier: Tensor


@dataclass(frozen=True, eq=False)
class _Lifted:
    """A row as a program over ±1.

    Attributes:
        row: its index.
        free: (n,) int64, the columns that are free.
        matrix: (n + 1, n + 1) float64, C, divided by ``scale``.
        groups, centre: the counts, for ``Frame``.
        point: (cols,) float64, the values of the entries that are not free.
    """

    row: int
    free: Tensor
    matrix: Tensor
    groups: Tensor
    centre: Tensor
    scale: float
    point: Tensor


def least_bytes(cols: int) -> int:
    """Return the bytes that one row of ``cols`` columns takes, without any cuts."""
    return 8 * _MATRICES * (cols + 1) ** 2


def dense_rows(
    problem: Problem, rows: list[int], scales: Tensor, prices: Tensor, memory_bytes: int, deadline: float | None
) -> list[DenseRow]:
    """Return a proof for each row that was reached in time; every row gets the same share of the time.

    Args:
        problem: the problem.
        rows: the rows, in the order of treatment.
        scales: (rows of the problem,) float64, the magnitude of a row's bound.
        prices: (rows, cols) float64, of counts that are no equation of one row.
        memory_bytes: bound on temporaries.
        deadline: ``time.monotonic()`` after which no row is started; None for a fixed number of rounds of cuts.
    """
    found: list[DenseRow | None] = []
    todo = len(rows)
    for batch in _batches(problem, rows, scales, prices, memory_bytes):
        until = None
        if deadline is not None:
            now = time.monotonic()
            if now >= deadline:
                break
            until = now + (deadline - now) * len(batch) / max(todo, len(batch))
        todo -= len(batch)
        program = _solved(batch, until, memory_bytes)
        found += [_proof(problem, item, program, place) for place, item in enumerate(batch)]
    return [row for row in found if row is not None]


def _batches(
    problem: Problem, rows: list[int], scales: Tensor, prices: Tensor, memory_bytes: int
) -> Iterator[list[_Lifted]]:
    """Yield rows to be treated together: as many as fit the memory, all with the same free columns."""
    size = problem.shape[1] + 1
    wide = 8 * (_MATRICES * size**2 + _NEWTON_MATRICES * ((1 + _ROUNDS) * size) ** 2)
    most = max(1, min(memory_bytes // wide, _ROWS_AT_ONCE.get(problem.device.type, 64)))
    batch: list[_Lifted] = []
    for row in rows:
        item = _lifted(problem, row, float(scales[row]), prices[row])
        if item is None:
            continue
        alike = batch and torch.equal(batch[0].free, item.free) and torch.equal(batch[0].centre, item.centre)
        if batch and (len(batch) == most or not alike):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _lifted(problem: Problem, row: int, scale: float, price: Tensor) -> _Lifted | None:
    """Write a row as a quadratic over ±1; return None if nothing is left to choose."""
    cols = problem.shape[1]
    quadratic, linear = problem.row_quadratic(row)
    linear = linear - price
    kept, pruned = problem.polytope.fixed()
    none = torch.zeros(cols, dtype=torch.bool, device=problem.device)
    one = none if kept is None else kept[row].clone()
    zero = none if pruned is None else pruned[row].clone()
    counts, at_most = row_counts(problem), problem.polytope.is_at_most()
    centre = torch.zeros(cols, dtype=torch.float64, device=problem.device)
    group = torch.zeros(cols, dtype=torch.int64, device=problem.device)
    if counts is not None:
        size, keep = counts
        group = torch.arange(cols, device=problem.device) // size
        # Where a count leaves nothing to choose the lifted set would have no interior: such entries are fixed, too.
        left = keep - one.view(-1, size).sum(dim=1)
        zero |= (left == 0)[group] & ~one
        room = size - (one | zero).view(-1, size).sum(dim=1)
        if not at_most:
            one |= (left == room)[group] & ~zero
            centre = (1 - 2 * left / room.clamp(min=1)).to(torch.float64)[group]
    counted = counts is not None and not at_most
    free = (~(one | zero)).nonzero().squeeze(1)
    n = len(free)
    if not problem.nonnegative:  # an objective near 0 says nothing of the size of its terms
        scale = max(scale, _LEAST_SCALE * float(quadratic.diagonal().sum()))
    if n < 2 or not scale > 0:
        return None
    linear = linear + 2 * quadratic[:, one].sum(dim=1)
    inner, linear = quadratic[free][:, free], linear[free]
    matrix = inner.new_empty(n + 1, n + 1)
    matrix[1:, 1:] = inner / 4
    matrix[0, 1:] = matrix[1:, 0] = -(inner.sum(dim=1) + linear) / 4
    matrix[0, 0] = inner.sum() / 4 + linear.sum() / 2
    groups = torch.unique(group[free], return_inverse=True)[1] if counted else torch.full_like(free, -1)
    return _Lifted(row, free, matrix / scale, groups, centre[free], scale, one.to(torch.float64))


def _solved(batch: list[_Lifted], until: float | None, memory_bytes: int) -> InteriorPoint:
    """Run the method for a batch of rows, adding cuts on the way in while there is time."""
    program = InteriorPoint(torch.stack([item.matrix for item in batch]), Frame(batch[0].groups, batch[0].centre))
    size = program.y.shape[1]
    rounds = max(_ROUNDS, min(_MORE_ROUNDS, _CHEAP // size)) if until is None else _TIMED_ROUNDS
    most_cuts = _most_cuts(size, memory_bytes // len(batch))
    wait = 0  # steps before the next cuts
    for _ in range(_MOST_STEPS + _EVERY * rounds):
        began = time.monotonic()
        gap = float(program.step().masked_fill(program.broken, 0.0).amax())
        if bool(program.broken.all()):
            break
        now = time.monotonic()
        open_to_cuts = rounds > 0 and (until is None or now + (now - began) * (_EVERY + _TO_END) < until)
        wait -= 1
        if open_to_cuts and gap < _FIRST and wait <= 0:
            wait = _EVERY
            if _add_cuts(program, min(math.ceil(_SHARE * size), most_cuts - program.cuts.count)):
                rounds -= 1
                continue
            open_to_cuts = False
        if gap < _GAP and not open_to_cuts:
            break
    return program


def _most_cuts(size: int, memory_bytes: int) -> int:
    """Return how many cuts of a row fit in memory next to its matrices."""
    return max(0, math.isqrt(max(0, memory_bytes // 8 - _MATRICES * size**2) // _NEWTON_MATRICES) - size)


def _add_cuts(program: InteriorPoint, count: int) -> bool:
    """Drop the cuts that are inactive and add those that are violated most; False if there are none."""
    cuts = violated(program.primal, program.cuts, count) if count > 0 else None
    if cuts is None:
        return False
    mean = (program.gap / program.y.shape[1]).unsqueeze(1)
    active = (program.multiplier > _INACTIVE * mean * program.slack).sum(dim=1)
    program.add(cuts, int(active.amax()))
    return True


def _proof(problem: Problem, item: _Lifted, program: InteriorPoint, place: int) -> DenseRow | None:
    """Turn the dual of one row into a proof: λ ≥ 0, and d lowered until convexity is proven."""
    cols, device = problem.shape[1], problem.device
    first = program.primal[place, 0]
    point = item.point.clone()
    point[item.free] = ((1 - first[1:] / first[0]) / 2).clamp(0, 1)
    columns = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), item.free + 1])
    multiplier = (program.multiplier[place] * item.scale).clamp(min=0)
    row = DenseRow(
        row=item.row,
        point=point,
        diagonal=torch.zeros(cols, dtype=torch.float64, device=device).index_copy_(
            0, item.free, 4 * item.scale * program.y[place, 1:]
        ),
        weight=0.0,
        index=columns[program.cuts.index[place]],
        sign=program.cuts.sign[place].to(torch.int8),
        multiplier=multiplier,
    )
    return _convex(problem, item, row) if bool(torch.isfinite(row.diagonal).all()) else None


def _convex(problem: Problem, item: _Lifted, row: DenseRow) -> DenseRow | None:
    """Choose ρ and lower d until a Cholesky factorisation with slack proves that the row's L is convex."""
    free, n = item.free, len(item.free)
    quadratic = item.matrix[1:, 1:] * (4 * item.scale)
    place = torch.full((problem.shape[1] + 1,), n, dtype=torch.int64, device=free.device)
    place[free + 1] = torch.arange(n, device=free.device)  # the constant goes to a line that is dropped
    cuts = Cuts(place[row.index].unsqueeze(0), row.sign.to(torch.float64).unsqueeze(0))
    taken = 4 * cuts.weighted(row.multiplier.unsqueeze(0), n + 1)[0, :n, :n]
    counts = (item.groups.unsqueeze(1) == item.groups).to(torch.float64) * (item.groups >= 0)
    base = quadratic - taken
    base.diagonal().sub_(row.diagonal[free])
    size = quadratic.abs() + taken.abs() + torch.diag(row.diagonal[free].abs())
    unit = float(size.diagonal().mean())
    for number, weight in enumerate(_WEIGHTS if bool(counts.any()) else (0.0,)):
        weight *= unit / max(1.0, float(counts[0].sum()))
        last = number == len(_WEIGHTS) - 1 or weight == 0
        lower = _lowered(base + weight * counts, size + weight * counts, last)
        if lower is not None:
            diagonal = row.diagonal.clone()
            diagonal[free] -= lower
            return replace(row, diagonal=diagonal, weight=weight)
    return None


def _lowered(matrix: Tensor, size: Tensor, patient: bool) -> Tensor | None:
    """Return what to add to the diagonal (n,) so that ``matrix`` is proven definite; None if it is not at once.

    Args:
        matrix: (n, n) float64, a sum of rounded terms.
        size: (n, n) float64, the sum of their absolute values.
        patient: keep adding until it is.
    """
    n = len(matrix)
    scale = size.diagonal().clamp(min=float(size.diagonal().amax()) * 1e-14)
    root = scale.rsqrt()
    rounding = float((size * root * root.unsqueeze(1)).amax())
    slack = n * (n + 16) * UNIT_ROUNDOFF * max(1.0, rounding) * 2
    scaled = matrix * root * root.unsqueeze(1)
    share = 0.0
    while True:
        trial = scaled.clone()
        trial.diagonal().add_(share - slack)
        if int(torch.linalg.cholesky_ex(trial).info) == 0:
            return share * scale
        if not patient or share > 1e3 * n:
            return None
        share = max(4 * share, slack)
