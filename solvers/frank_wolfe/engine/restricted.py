"""A few entries of each row as a problem of their own, with all other entries held."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relaxprune.problems import NM, Face, KSparse, Polytope, Problem, Working
from relaxprune.problems.polytopes.base import Shape
from relaxprune.problems.working import Quadratic

from ...exchange.engine.gains import ExchangeState

_TENSORS = 16  # (copies, n) held at once for each line, plus three (n, n)
_FILL = 4  # extra entries a side
_WIDEST = 256  # entries of a row at most
_NARROW = 64  # and no more than a quarter of the row, where that is not below this


class Restricted(Quadratic):
    """f as a function of some entries of each line, several copies of a line side by side.

    Args:
        matrix: (lines, n, n), Q of each line's entries.
        half_gradient: (lines, n), half the gradient of f at ``mask``.
        mask: (lines, n), of 0 and 1.
        polytope: the set of masks (lines · copies, n).
        copies: of each line; copy c of line r is row r · copies + c.
    """

    def __init__(self, matrix: Tensor, half_gradient: Tensor, mask: Tensor, polytope: Polytope, copies: int) -> None:
        self.matrix, self.polytope, self.copies, self.source = matrix, polytope, copies, None
        self.half, self.mask = (part.repeat_interleave(copies, dim=0) for part in (half_gradient, mask))
        self.diagonal = matrix.diagonal(dim1=1, dim2=2).repeat_interleave(copies, dim=0)

    def image(self, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """Return Q d."""
        lines, size = len(self.matrix), self.matrix.shape[1]
        product = torch.bmm(direction.view(lines, self.copies, size), self.matrix)
        return product.view(-1, size)

    def half_gradient(self, point: Tensor) -> Tensor:
        """Return the half gradient at ``mask`` plus Q (m − mask)."""
        return self.image(point - self.mask).add_(self.half)

    def change(self, mask: Tensor) -> Tensor:
        """Return f(mask) − f(the current mask) for each row: (lines · copies,)."""
        moved = mask - self.mask
        change: Tensor = torch.linalg.vecdot(moved, self.image(moved) + 2 * self.half)
        return change


def widest(shape: Shape) -> int:
    """Return the most entries of a row to look at together: their cost grows with the square."""
    return min(_WIDEST, max(_NARROW, shape[1] // 4))


class Entries:
    """The entries of some lines to look at: those wanted, and the cheapest others of their kind.

    Args:
        state: the masks.
        lines: (R,) indices.
        wanted: (R, cols) bool, entries that may move; as many kept as pruned in each group that shares a count.
    """

    def __init__(self, state: ExchangeState, lines: Tensor, wanted: Tensor) -> None:
        self.state, self.lines = state, lines
        polytope, shape = state.problem.polytope, state.problem.shape
        self.group = polytope.group_size(shape)
        self.columns, self.polytope = (
            self._of_rows(wanted) if self.group == shape[1] else self._of_groups(wanted, polytope)
        )

    @staticmethod
    def batches(problem: Problem, wanted: Tensor, copies: int, memory_bytes: int) -> Iterator[slice]:
        """Split lines into batches to look at together: as many as fit, at least one.

        Args:
            problem: the problem of all lines.
            wanted: (R, cols) bool, lines in the order of how many entries they want.
            copies: number of copies of each line.
            memory_bytes: bound on what a batch holds.
        """
        group = problem.polytope.group_size(problem.shape)
        most = widest(problem.shape)
        few = group == problem.shape[1]  # any entries of a row, or whole groups
        start, count = 0, 0
        sizes: list[int] = wanted.sum(dim=1).tolist()
        for stop, size in enumerate(sizes):
            width = min(size + 2 * _FILL, most) if few else min((size + _FILL) * group, max(most, group))
            line = 8 * width * (3 * width + _TENSORS * copies)
            if count and (count + 1) * line > memory_bytes:
                yield slice(start, stop)
                start, count = stop, 0
            count += 1
        if count:
            yield slice(start, len(sizes))

    def _of_rows(self, wanted: Tensor) -> tuple[Tensor, Polytope]:
        """Choose as many kept as pruned entries of each line."""
        gains = self.state.single_gains(self.lines)
        most = min(int(torch.isfinite(gain).sum(dim=1).min()) for gain in gains)
        half = min(int(wanted.sum(dim=1).max()) // 2 + _FILL, widest(self.state.problem.shape) // 2, most)
        order = [torch.where(wanted & torch.isfinite(gain), -torch.inf, gain) for gain in gains]
        chosen = [gain.topk(half, dim=1, largest=False, sorted=False).indices for gain in order]
        return torch.cat(chosen, dim=1), KSparse(half)

    def _of_groups(self, wanted: Tensor, polytope: Polytope) -> tuple[Tensor, Polytope]:
        """Choose whole groups of each line."""
        form = (len(self.lines), -1, self.group)
        prune, restore = (gain.view(form).amin(dim=2) for gain in self.state.single_gains(self.lines))
        inside = wanted.view(form).any(dim=2)
        count = int(inside.sum(dim=1).max()) + _FILL
        count = min(count, max(1, widest(self.state.problem.shape) // self.group), inside.shape[1])
        groups = torch.where(inside, -torch.inf, prune + restore).topk(count, dim=1, largest=False).indices
        columns = groups.unsqueeze(2) * self.group + torch.arange(self.group, device=wanted.device)
        columns = columns.flatten(1)
        base = NM(polytope.cells((1, self.group))[1], self.group, at_most=polytope.is_at_most())
        kept, pruned = (
            None if entries is None else entries[self.lines].gather(1, columns) for entries in polytope.fixed()
        )
        return columns, base if kept is None and pruned is None else Face(base, kept, pruned)

    def problem(self, working: Working, copies: int) -> Restricted:
        """Return the problem of these entries in the dtype of ``working``."""
        state, dtype = self.state, working.diagonal.dtype
        matrix = working.coupling(self.lines, self.columns, self.columns)
        half = state.half_gradient[self.lines].gather(1, self.columns).to(dtype)
        line = torch.arange(len(self.lines), device=self.lines.device).repeat_interleave(copies)
        mask = state.mask[self.lines].gather(1, self.columns).to(dtype)
        return Restricted(matrix, half, mask, self.polytope.rows(line), copies)
