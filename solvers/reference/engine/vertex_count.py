"""Counting the masks of a coupled block without listing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from relaxprune.problems import Problem


@dataclass(frozen=True, eq=False)
class Block:
    """The masks of one coupled block: in every cell ``keep`` entries are kept, or at most that.

    Attributes:
        cells: (cells, n) int64 on the CPU, the entries that share a count, as flat indices into the block.
        keep: kept entries of a cell.
        at_most: whether fewer may be kept.
        kept, pruned: (size,) bool, what every mask keeps and prunes.
    """

    cells: Tensor
    keep: int
    at_most: bool
    kept: Tensor
    pruned: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Block:
        """Take the masks that any coupled block of ``problem`` can have: only entries fixed in all are fixed."""
        polytope, size = problem.polytope, problem.polytope.rows_per_block(problem.shape) * problem.shape[1]
        cells, keep = polytope.cells(problem.shape)
        kept, pruned = (
            torch.zeros(size, dtype=torch.bool) if entries is None else entries.reshape(-1, size).all(dim=0).cpu()
            for entries in polytope.fixed()
        )
        return cls(cells.cpu(), keep, polytope.is_at_most(), kept, pruned)

    def count(self, most: int) -> int:
        """Return the number of masks; counting stops above ``most``, and the number is then only that."""
        return self._product(most) if self.cells.numel() == len(self.kept) else self._walk(most)

    def _product(self, most: int) -> int:
        """Count if every entry has one count: cells choose independently."""
        free = (~(self.kept | self.pruned))[self.cells].sum(dim=1)
        need = self.keep - self.kept[self.cells].sum(dim=1)
        total = 1
        for entries, chosen in zip(free.tolist(), need.tolist(), strict=True):
            total *= _choices(entries, chosen, self.at_most, most)
            if total > most:
                break
        return total

    def _walk(self, most: int) -> int:
        """Count if entries have several counts: decide one by one, and merge choices that leave the same counts.

        Choices that can no longer reach a count are dropped at once, so a number above ``most`` on the way means about
        as many masks (exactly as many if nothing is fixed).
        """
        numbers = torch.arange(len(self.cells)).unsqueeze(1).expand_as(self.cells)
        pairs = torch.stack([self.cells.reshape(-1), numbers.reshape(-1)])
        ways: dict[tuple[int, ...], int] = {(0,) * len(self.cells): 1}
        left = (~self.pruned)[self.cells].sum(dim=1).tolist()  # entries of each cell that may still be kept
        counted_in: dict[int, list[int]] = {}
        for entry, number in pairs.T.tolist():
            counted_in.setdefault(entry, []).append(number)
        for entry in self._order(pairs):
            mine = counted_in[entry]
            for number in mine:
                left[number] -= not self.pruned[entry]
            choices = (1,) if self.kept[entry] else (0,) if self.pruned[entry] else (0, 1)
            grown: dict[tuple[int, ...], int] = {}
            for counts, number_of in ways.items():
                for choice in choices:
                    after = self._after(counts, mine, choice, left)
                    if after is not None:
                        grown[after] = grown.get(after, 0) + number_of
            ways = grown
            if sum(ways.values()) > most:
                break
        return sum(ways.values())

    def _after(self, counts: tuple[int, ...], mine: list[int], choice: int, left: list[int]) -> tuple[int, ...] | None:
        """Return the counts after a choice, without those of finished cells, or None if one cannot be met."""
        after = list(counts)
        for number in mine:
            after[number] += choice
            short = not self.at_most and after[number] + left[number] < self.keep
            if short or after[number] > self.keep:
                return None
            if not left[number]:
                after[number] = 0
        return tuple(after)

    def _order(self, pairs: Tensor) -> list[int]:
        """Return the entries in an order that keeps those with related counts together."""
        entries, cells = pairs.numpy()
        size = len(self.kept)
        nodes: Any = coo_matrix(([True] * len(cells), (entries, size + cells)), shape=(size + len(self.cells),) * 2)
        _, label = connected_components(nodes, directed=False)
        order: list[int] = torch.from_numpy(label)[:size].argsort(stable=True).tolist()
        return order


def _choices(entries: int, chosen: int, at_most: bool, most: int) -> int:
    """Return how many ways there are to choose ``chosen`` of ``entries``, or at most that; stops above ``most``."""
    if chosen < 0 or (chosen > entries and not at_most):
        return 0
    if not at_most:
        chosen = min(chosen, entries - chosen)
    ways = total = 1
    for number in range(min(chosen, entries)):
        ways = ways * (entries - number) // (number + 1)
        total += ways
        if ways > most:
            break
    return total if at_most else ways
