"""A semidefinite bound for single rows, with cuts.

A row is lifted to X ≈ x xᵀ, x = (1, 1 − 2m): minimise ⟨C, X⟩ over X ⪰ 0 with unit diagonal, on the subspace of the
row's counts, with the violated ones of the triangle inequalities added while the interior-point method is still far
from the boundary. Only the dual is used of it: a diagonal and the multipliers of the cuts (see ``underestimator``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relaxprune.problems import Problem
from relaxprune.problems.precision import UNIT_ROUNDOFF
from relaxprune.solvers.cuts import Cuts
from relaxprune.solvers.frame import Frame
from relaxprune.solvers.interior_point import InteriorPoint

from .separation import violated
from .underestimator import row_counts

STAGES = (0, 1, 2, 4)  # cuts per column
_GAP = 4e-3
_ADD_AT = (0.5, 0.2)  # relative gaps at which cuts are added: cuts found far inside are the better ones
_MOST_STEPS = 60
_CHEAP_CUTS = 800
_MATRICES = 20
_ROWS_AT_ONCE = {"cpu": 2}  # more only leave the cache
_WEIGHTS = (1e1, 1e3, 1e5, 1e7)


@dataclass(frozen=True, eq=False)
class DenseRow:
    """What proves the bound of one row.

    Attributes:
        row: its index.
        value: the bound that the method saw, up to a constant and unproven: for comparing attempts at the same row.
        point: (cols,) float64, where the tangent is taken.
        diagonal: (cols,) float64, d.
        weight: ρ.
        index, sign, multiplier: (m, 3) int64, (m, 3) int8 and (m,) float64, the cuts.
    """

    row: int
    value: float
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


def dense_rows(
    problem: Problem, rows: list[int], scales: Tensor, prices: Tensor, memory_bytes: int, deadline: float | None
) -> dict[int, DenseRow]:
    """Return the best proof found for each row, within the time: later rounds use more cuts.

    Args:
        problem: the problem.
        rows: the rows, in the order of treatment.
        scales: (rows of the problem,) float64, what a row's bound is of the order of.
        prices: (rows, cols) float64, what counts over several rows cost.
        memory_bytes: bound on temporaries.
        deadline: ``time.monotonic()`` after which no more work is begun; None treats every row once.
    """
    best: dict[int, DenseRow] = {}
    cuts: dict[int, Cuts] = {}
    for stage in _stages(problem, deadline):
        for batch in _batches(problem, rows, scales, prices, stage, memory_bytes):
            if deadline is not None and time.monotonic() >= deadline:
                return best
            program = _solved(batch, stage, [cuts.get(item.row) for item in batch])
            for place, item in enumerate(batch):
                cuts[item.row] = Cuts(program.cuts.index[place : place + 1], program.cuts.sign[place : place + 1])
                found = _proof(problem, item, program, place)
                if found is not None and (item.row not in best or found.value > best[item.row].value):
                    best[item.row] = found
    return best


def _stages(problem: Problem, deadline: float | None) -> tuple[int, ...]:
    """Return the rounds to go through, in cuts per column: all within a time, else the one that costs little."""
    if deadline is not None:
        return STAGES
    return (max(1, min(STAGES[-1], _CHEAP_CUTS // problem.shape[1])),)


def _batches(
    problem: Problem, rows: list[int], scales: Tensor, prices: Tensor, stage: int, memory_bytes: int
) -> Iterator[list[_Lifted]]:
    """Yield rows to be treated together: as many as fit the memory, all with the same free columns."""
    size = problem.shape[1] + 1
    wide = 8 * (_MATRICES * size**2 + 5 * ((1 + 2 * stage) * size) ** 2)
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
    """Write a row as a quadratic over ±1, or return None where nothing is left to choose."""
    cols = problem.shape[1]
    quadratic, linear = problem.row_quadratic(row)
    linear = linear - price
    kept, pruned = problem.polytope.fixed()
    none = torch.zeros(cols, dtype=torch.bool, device=problem.device)
    one = none if kept is None else kept[row].clone()
    zero = none if pruned is None else pruned[row].clone()
    size, keep = row_counts(problem)
    group = torch.arange(cols, device=problem.device) // size
    counted = keep > 0 or size > 1
    centre = torch.zeros(cols, dtype=torch.float64, device=problem.device)
    if counted:
        left = keep - one.view(-1, size).sum(dim=1)
        room = size - (one | zero).view(-1, size).sum(dim=1)
        if bool((((left == 0) | (left == room)) & (room > 0)).any()):
            return None  # a count leaves nothing to choose in a group: the lifted set has no interior
        centre = (1 - 2 * left / room.clamp(min=1)).to(torch.float64)[group]
    free = (~(one | zero)).nonzero().squeeze(1)
    n = len(free)
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


def _solved(batch: list[_Lifted], stage: int, before: list[Cuts | None]) -> InteriorPoint:
    """Run the method for a batch of rows, adding cuts on the way in."""
    matrix = torch.stack([item.matrix for item in batch])
    n = matrix.shape[1] - 1
    program = InteriorPoint(matrix, matrix.new_ones(n + 1), Frame(batch[0].groups, batch[0].centre))
    todo = list(_ADD_AT) if stage and n > 2 else []
    for _ in range(_MOST_STEPS):
        gap = float(program.step().masked_fill(program.broken, 0.0).amax())
        if bool(program.broken.all()):
            break
        if todo and gap < todo[0]:
            todo.pop(0)
            _add_cuts(program, stage * n // len(_ADD_AT), before)
            before = [None] * len(batch)
        elif not todo and gap < _GAP:
            break
    return program


def _add_cuts(program: InteriorPoint, count: int, before: list[Cuts | None]) -> None:
    """Add the cuts that a row ended with last time, else those that it violates most now."""
    known = [item for item in before if item is not None and item.count]
    if len(known) == len(before) and len({item.count for item in known}) == 1:
        cuts = Cuts(torch.cat([item.index for item in known]), torch.cat([item.sign for item in known]))
    else:
        cuts = violated(program.primal, count)
    program.add(cuts, program.cuts.count)


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
        value=float(program.value[place]),
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
