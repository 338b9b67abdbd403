"""Every mask of a tiny problem: the ground truth that the other solvers are judged against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.problems.polytopes.vertices import VERTEX_LIMIT, block_vertices

from ..base import Answer, Counts, Run, Solver, Status
from ..driver import Band, Driver
from .engine.vertex_count import Block

_SPARE_MATRICES = 4
_ENTRY_LIMIT = 2**28


@dataclass(frozen=True)
class Enumerate(Solver):
    """Evaluate every feasible mask of each coupled block, in float64, all blocks at once.

    For tiny problems: at most 2^20 masks a coupled block, and 2^28 entries in all of its masks. ``max_iterations``
    bounds the masks looked at; a mask for all rows counts as one product.
    """

    name: ClassVar[str] = "enumerate"
    summary: ClassVar[str] = "every mask of a tiny problem (at most 2^20 a coupled block): proven optimal"
    default_polish: ClassVar[str | None] = None
    honours: ClassVar[frozenset[str]] = frozenset({"start", "max_iterations", "time_limit_s"})
    monotone: ClassVar[bool] = True
    only_images: ClassVar[bool] = False
    proves: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        """Refuse a problem with too many masks; they are counted before any is written down.

        Raises:
            RelaxPruneError: a coupled block has more than 2^20 masks, or they have more than 2^28 entries.
        """
        height, cols = problem.polytope.rows_per_block(problem.shape), problem.shape[1]
        most = min(VERTEX_LIMIT, _ENTRY_LIMIT // (height * cols))
        if Block.of(problem).count(most) > most:
            raise RelaxPruneError(
                f"solver 'enumerate' takes at most {most} masks of a coupled block of {height} x {cols}, and this set "
                "has more; 'exact' takes up to 64 free entries per coupled block, and 'fw' any number"
            )

    def run(self, problem: Problem, run: Run) -> Answer:
        """Take the best mask of each coupled block, or the start if the budget ended before a better one."""
        masks = _all_masks(problem).to(problem.device)
        driver = Driver(self.name, run, problem.split(problem.shape[1] + _SPARE_MATRICES, run.memory_bytes // 2))
        return driver.sweep(lambda band: _look(band, masks))


def _look(band: Band[Problem], masks: Tensor) -> Answer:
    """Take the best of ``masks`` (masks, height, cols) for each coupled block of a band."""
    blocks = _Blocks(band.problem, band.run.start)
    if not blocks.finite():
        return Answer(band.run.start, status=Status.NOT_FINITE)
    wanted, done = masks[: band.run.max_iterations], 0
    for chunk in wanted.split(blocks.chunk(band.run.memory_bytes // 2)):
        blocks.look(chunk)
        done += len(chunk)
        band.report(done, done, 0 if done == len(masks) else None)
        if band.run.expired():
            break
    status = Status.OPTIMAL
    if done < len(masks):
        status = Status.TIME_LIMIT if done < len(wanted) else Status.ITERATION_LIMIT
    return Answer(blocks.best, status=status, counts=Counts(done, done))


class _Blocks:
    """The objectives of some coupled blocks at many masks, in z = 1 − m: zᵀ Q z − 2 h·z, with h at z = 0."""

    def __init__(self, problem: Problem, start: Tensor) -> None:
        self.working = working = problem.working(torch.float64)
        start = start.contiguous()
        rows, cols = problem.shape
        height = problem.polytope.rows_per_block(problem.shape)
        form = (rows // height, height, cols)
        everything = torch.arange(cols, device=start.device).expand(rows, cols)
        lines = torch.arange(rows, device=start.device)
        self.coupling = working.coupling(lines, everything, everything).view(*form, cols)
        self.slope = -2 * working.half_gradient(torch.ones_like(start, dtype=torch.float64)).view(form)
        kept, pruned = problem.polytope.fixed()
        nothing = torch.zeros_like(start)
        self.kept = (nothing if kept is None else kept).view(form).to(torch.float64)
        self.pruned = (nothing if pruned is None else pruned).view(form).to(torch.float64)
        point = 1 - start.to(torch.float64).view(form)
        image = self._images(point) if working.couples else torch.einsum("bhcd,bhd->bhc", self.coupling, point)
        self.value = (point * (image + self.slope)).sum(dim=(1, 2))  # (blocks,)
        self.best = start.clone()

    def finite(self) -> bool:
        """Return whether the objective is a finite number at every mask."""
        return bool(torch.isfinite(self.slope).all() and torch.isfinite(self.coupling).all())

    def chunk(self, memory_bytes: int) -> int:
        """Return how many masks to look at together."""
        return max(1, memory_bytes // (8 * _SPARE_MATRICES * self.slope.numel()))

    def _images(self, points: Tensor) -> Tensor:
        """Return Q z of points (points, rows, cols)."""
        return torch.stack([self.working.image(point) for point in points])

    def look(self, masks: Tensor) -> None:
        """Evaluate ``masks`` (masks, height, cols) in every block and keep the better ones."""
        point = (~masks).to(torch.float64)
        if self.working.couples:  # one block of all rows
            image = self._images(point).unsqueeze(0)
        else:
            image = torch.einsum("vhc,bhcd->bvhd", point, self.coupling)
        value = torch.einsum("bvhd,vhd->bv", image.add_(self.slope.unsqueeze(1)), point)
        broken = torch.einsum("vhd,bhd->bv", point, self.kept) + torch.einsum("vhd,bhd->bv", 1 - point, self.pruned)
        least, index = value.masked_fill_(broken > 0, torch.inf).min(dim=1)
        better = least < self.value
        self.value = torch.where(better, least, self.value)
        view = self.best.view(self.slope.shape)
        view[better] = masks[index[better]]


def _all_masks(problem: Problem) -> Tensor:
    """Return the masks that any coupled block can take, (masks, height, cols) bool; see ``Block.of``."""
    height, cols = problem.polytope.rows_per_block(problem.shape), problem.shape[1]
    block = Block.of(problem)
    masks = block_vertices(height * cols, block.cells, block.keep, block.at_most, block.kept, block.pruned)
    return masks.view(-1, height, cols)
