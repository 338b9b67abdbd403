"""Moving inside the minimal face of a point: directions, the longest step, entries that reach a bound on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.problems import Polytope, Working

_ROUNDING = 8  # entries within this many units of roundoff of 0 or 1 are put there
_LEAST_CURVATURE = 1e-8  # of a block's mean: below it, scaling by the diagonal would only amplify noise


@dataclass
class Advance:
    """Where a line search ended, per coupled block: views (blocks, entries) of the tensors that it changed.

    Attributes:
        hits: (blocks,) entries that reached a bound, or counts that became tight.
        direction, image: the last direction and Q times it, after entries that hit a bound were taken out.
    """

    hits: Tensor
    direction: Tensor
    image: Tensor


class Faces:
    """What steps need to know about a polytope of shape (rows, cols): which entries share a count, and the counts.

    ``disjoint`` says whether every entry belongs to one count, in runs: then directions inside a face have a formula.
    """

    def __init__(self, polytope: Polytope, shape: tuple[int, int], device: torch.device) -> None:
        """Read the cells of the set once."""
        index, keep = polytope.cells(shape)
        self.index, self.keep = index.to(device), keep
        self.at_most = polytope.is_at_most()
        self.size = polytope.rows_per_block(shape) * shape[1]
        self.cols, self.cell = shape[1], int(index.shape[1])
        self.disjoint = index.numel() == self.size and bool((index.reshape(-1) == torch.arange(self.size)).all())

    def blocks(self, values: Tensor) -> Tensor:
        """View (rows, cols) as (blocks, entries of a block)."""
        return values.view(-1, self.size)

    def downhill(self, half_gradient: Tensor, point: Tensor, diagonal: Tensor) -> Tensor:
        """Return the steepest descent direction inside the minimal face of ``point``, in the metric of ``diagonal``.

        It minimises ⟨h, d⟩ + ½ Σ q d² over the d that are 0 where the point is 0 or 1 and keep every count (an
        "at most" count only where it is tight). All arguments and the result are (rows, cols).
        """
        direction = half_gradient * self._inverse(point, diagonal).neg_()
        return self.balance(self.balance(direction, point, diagonal), point, diagonal)

    def balance(self, direction: Tensor, point: Tensor, diagonal: Tensor) -> Tensor:
        """Return the nearest direction (metric of ``diagonal``) that keeps the counts; all are (rows, cols).

        Needed again after directions are combined: rounding errors of a sum would grow from step to step.
        """
        inverse = self._inverse(point, diagonal).view(-1, self.cell)
        cells = direction.view(-1, self.cell)
        total = inverse.sum(dim=1, keepdim=True)
        price = cells.sum(dim=1, keepdim=True) / torch.where(total > 0, total, 1.0)
        return (cells - inverse * torch.where(self._tight(point), price, 0.0)).view(point.shape)

    def settle(self, point: Tensor) -> None:
        """Give back, in place, what rounding took from the counts of ``point`` (rows, cols) that are kept exactly."""
        cells = point.view(-1, self.cell)
        slack = cells * (1 - cells)
        total = slack.sum(dim=1, keepdim=True)
        missing = torch.where(self._tight(point), self.keep - cells.sum(dim=1, keepdim=True), 0.0)
        cells.addcmul_(slack, missing / torch.where(total > 0, total, 1.0)).clamp_(0, 1)

    def reach(self, point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the longest step along ``direction`` inside the set, which entry ends it, and whether one does.

        Args:
            point: (blocks, entries).
            direction: (blocks, entries).

        Returns:
            Step (blocks,), index (blocks,) and bool (blocks,): False where a count ends it.
        """
        room = torch.where(direction > 0, 1 - point, torch.where(direction < 0, point, torch.inf))
        step, index = (room / torch.where(direction == 0, 1.0, direction.abs())).min(dim=1)
        if not self.at_most:
            return step, index, torch.ones_like(step, dtype=torch.bool)
        left = self.keep - point[:, self.index].sum(dim=2)  # (blocks, cells)
        rise = direction[:, self.index].sum(dim=2)
        still = torch.where(left <= self._rounding(point), direction.abs().amax(dim=1, keepdim=True), 0.0)
        rising = rise > still * torch.finfo(point.dtype).eps ** 0.5
        count = torch.where(rising, left.clamp_min(0) / torch.where(rising, rise, 1.0), torch.inf).amin(dim=1)
        return torch.minimum(step, count), index, step <= count

    @staticmethod
    def _inverse(point: Tensor, diagonal: Tensor) -> Tensor:
        """Return 1 / q at the entries inside the box, 0 at those at a bound: (rows, cols)."""
        inverse = diagonal.clamp_min(_LEAST_CURVATURE).reciprocal_()
        return inverse.masked_fill_((point <= 0) | (point >= 1), 0.0)

    def _tight(self, point: Tensor) -> Tensor:
        """Return which counts of disjoint cells hold with equality: (cells of all blocks, 1) bool, or all of them."""
        room = self.keep - point.view(-1, self.cell).sum(dim=1, keepdim=True)
        return room <= self._rounding(point) if self.at_most else torch.ones_like(room, dtype=torch.bool)

    def _rounding(self, values: Tensor) -> float:
        """Return what a sum over a cell can be off by."""
        return _ROUNDING * self.cell * torch.finfo(values.dtype).eps


def advance(
    problem: Working, faces: Faces, point: Tensor, half_gradient: Tensor, direction: Tensor, rounds: int
) -> Advance:
    """Search exactly along ``direction`` inside the set, in place, with ONE matrix product.

    If an entry reaches 0 or 1 before the minimum of the line, it is taken out of the direction (another entry of the
    same count takes over its part) and the search goes on, up to ``rounds`` times: the new image differs by two lines
    of Q, 2 / cols of a product. This is the breakpoint search along a bent path (Moré and Toraldo, SIAM J. Optim.
    1991), for sums that must be kept.

    Args:
        problem: the working problem.
        faces: the set.
        point: (rows, cols), moved in place.
        half_gradient: (rows, cols), moved with it.
        direction: (rows, cols) of descent, or 0; changed in place.
        rounds: line searches at most; 1 stops at the first bound.
    """
    image = problem.image(direction)
    x, h, d, qd = (faces.blocks(values) for values in (point, half_gradient, direction, image))
    inverse = faces.blocks(problem.diagonal.clamp_min(_LEAST_CURVATURE).reciprocal()) if rounds > 1 else None
    line = torch.arange(len(x), device=x.device)
    alive, hits = torch.ones_like(line, dtype=torch.bool), torch.zeros_like(line)
    for number in range(rounds):
        hit, entry, at = _search(faces, (x, h, d, qd), alive)
        hits += hit
        if inverse is None or number + 1 == rounds:
            break
        score = torch.where((x > 0) & (x < 1) & _same_cell(faces, at), x * (1 - x) * inverse, 0.0)
        best, to = score.max(dim=1)
        alive = hit & entry & (best > 0)
        share = torch.where(alive, d[line, at], 0.0)
        d[line, at] -= share
        d[line, to] += share
        for column, sign in ((at, -share), (to, share)):
            row = line * (faces.size // faces.cols) + column // faces.cols
            image.index_add_(0, row, problem.coupling_sum(row, (column % faces.cols).unsqueeze(1), sign.unsqueeze(1)))
    return Advance(hits, d, qd)


def _search(faces: Faces, tensors: tuple[Tensor, ...], alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do one exact line search in the blocks ``alive``; return where a bound ended it, by an entry, and which."""
    x, h, d, qd = tensors
    slope, curvature = torch.linalg.vecdot(h, d), torch.linalg.vecdot(qd, d)
    # Comparisons are written so that NaN passes through to the point, where the loop sees it.
    best = torch.where(curvature <= 0, torch.inf, -slope / curvature)
    reach, at, entry = faces.reach(x, d)
    going = alive & ~(slope >= 0) & ~torch.isinf(reach)
    step = torch.where(going, torch.minimum(best, reach), 0.0).unsqueeze(1)
    x.addcmul_(d, step)
    h.addcmul_(qd, step)
    tiny = _ROUNDING * torch.finfo(x.dtype).eps
    x.masked_fill_(x <= tiny, 0.0).masked_fill_(x >= 1 - tiny, 1.0)
    hit = going & (best >= reach)
    line = torch.arange(len(x), device=x.device)
    x[line, at] = torch.where(hit & entry, (d[line, at] > 0).to(x.dtype), x[line, at])
    return hit, entry, at


def _same_cell(faces: Faces, entry: Tensor) -> Tensor:
    """Return the entries that share a count with ``entry`` (blocks,), for disjoint cells: (blocks, entries)."""
    cell = torch.arange(faces.size, device=entry.device) // faces.cell
    return cell == (entry // faces.cell).unsqueeze(1)
