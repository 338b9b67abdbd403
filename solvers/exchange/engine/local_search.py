"""Iterated local search on batches of rows: kick, descend by exchanges, keep the better.

Every row of the batch is at its own point of this cycle, so each round does useful work on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.problems import Problem

from .gains import ExchangeState
from .pair_search import group_search, pool_search

MATRICES = 14  # (rows, cols) float64 tensors held at once, per copy
_STRENGTHS = (2, 4, 8, 16)  # pairs exchanged by a kick
_EASY = 16  # entries that are about equally likely to be drawn
_POWER = 2  # how much less likely more expensive entries are


@dataclass
class Kick:
    """Random exchanges for some rows: entries to prune and to restore (R, pairs), and which pairs count."""

    prune: Tensor
    restore: Tensor
    valid: Tensor


class LocalSearch:
    """Iterated local search from one mask, ``copies`` of every row at a time.

    Args:
        problem: the problem, loosened.
        group: consecutive columns that share a count.
        mask: (rows, cols) bool, feasible.
        copies: independent searches of each row.
        seed: seed of the kicks.
    """

    def __init__(self, problem: Problem, group: int, mask: Tensor, copies: int, seed: int) -> None:
        self.group, self.rows, self.copies = group, mask.shape[0], copies
        self.generator = torch.Generator(device=mask.device).manual_seed(seed)
        # Copy c of row r is line c · rows + r.
        line = torch.arange(self.rows, device=mask.device).repeat(copies)
        self.working = problem.working(torch.float64).select(line)
        self.state = ExchangeState(self.working, mask[line])
        self.best_mask = self.state.mask.clone()
        self.best_half = self.state.half_gradient.clone()
        self.best = self.state.objective.clone()  # (lines,)
        self.coupling = self.working.group_coupling(group) if group < mask.shape[1] else None
        self.everything = self.state.everything
        self.products = float(copies)
        self.swaps = 0

    def movable(self) -> bool:
        """Return whether any exchange exists: exchanges do not change that."""
        state = self.state
        free_kept, free_pruned = state.mask, ~state.mask
        if state.fixed_kept is not None:
            free_kept = free_kept & ~state.fixed_kept
        if state.fixed_pruned is not None:
            free_pruned = free_pruned & ~state.fixed_pruned
        form = (len(self.everything), -1, self.group)
        return bool((free_kept.view(form).any(dim=2) & free_pruned.view(form).any(dim=2)).any())

    def round(self) -> None:
        """Do one exchange in every line that has a helpful one; judge and kick the others."""
        state = self.state
        if self.coupling is None:
            moves = pool_search(state, self.everything)
        else:
            moves = group_search(state, self.everything, self.coupling)
        helps = moves.gain < -state.tolerance()
        lines = helps.nonzero().squeeze(1)
        if len(lines):
            state.apply(lines, moves.take(lines))
            self.swaps += len(lines)
        ended = (~helps).nonzero().squeeze(1)
        if len(ended):
            self._judge(ended)
            self._kick(ended)

    @property
    def finite(self) -> bool:
        """Whether every line's objective is a finite number now."""
        return bool(torch.isfinite(self.best).all() and torch.isfinite(self.state.objective).all())

    def result(self) -> Tensor:
        """Return the best mask of each row over its copies, including the current descent: (rows, cols) bool."""
        self._judge(self.everything)
        winner = self.best.view(self.copies, self.rows).argmin(dim=0)
        return self.best_mask[winner * self.rows + self.everything[: self.rows]]

    def _judge(self, lines: Tensor) -> None:
        """Record the masks of ``lines`` that beat the best of their copy."""
        state = self.state
        better = state.objective[lines] < self.best[lines] - state.tolerance()[lines]
        won = lines[better]
        self.best[won] = state.objective[won]
        self.best_mask[won] = state.mask[won]
        self.best_half[won] = state.half_gradient[won]

    def _kick(self, lines: Tensor) -> None:
        """Return ``lines`` to their best mask with some random pairs exchanged, with fresh half gradients."""
        # The draw below reads single gains at the best mask, so the descent goes back there first.
        self.state.mask[lines] = mask = self.best_mask[lines]
        self.state.half_gradient[lines] = self.best_half[lines]
        kick = self._draw(lines)
        row = torch.arange(len(lines), device=lines.device).unsqueeze(1).expand_as(kick.valid)[kick.valid]
        mask[row, kick.prune[kick.valid]] = False
        mask[row, kick.restore[kick.valid]] = True
        part = self.working.select(lines)
        point = mask.to(torch.float64)
        half_gradient = part.half_gradient(point)
        self.products += len(lines) / self.rows
        self.state.mask[lines] = mask
        self.state.half_gradient[lines] = half_gradient
        self.state.objective[lines] = part.row_value(point, half_gradient)

    def _draw(self, lines: Tensor) -> Kick:
        """Draw 2, 4, 8 or 16 pairs of entries that are not fixed, each pair within a group.

        Entries race: the cheaper it is to move one, the likelier it is drawn. Uniform draws mostly move entries that
        the descent moves straight back.
        """
        left, right = (self._race(gain) for gain in self.state.single_gains(lines))
        pick = torch.randint(len(_STRENGTHS), (len(lines), 1), generator=self.generator, device=left.device)
        pairs = torch.tensor(_STRENGTHS, device=left.device)[pick]
        if self.group == left.shape[1]:
            width = min(max(_STRENGTHS), self.group)
            first, second = (each.topk(width, dim=1, largest=False) for each in (left, right))
            time, prune, restore = first.values + second.values, first.indices, second.indices
        else:
            time, prune, restore = self._draw_in_groups(left, right)
        order = torch.arange(time.shape[1], device=time.device)
        return Kick(prune, restore, torch.isfinite(time) & (order < pairs))

    def _race(self, gain: Tensor) -> Tensor:
        """Return random times (R, cols), the shorter the smaller the gain; +∞ where an entry may not move."""
        above = gain - gain.amin(dim=1, keepdim=True).nan_to_num(posinf=0.0)
        rank = min(_EASY, gain.shape[1]) - 1
        unit = above.kthvalue(rank + 1, dim=1, keepdim=True).values
        unit = torch.where(torch.isfinite(unit) & (unit > 0), unit, 1.0)
        noise = torch.empty_like(gain).exponential_(generator=self.generator)
        return torch.where(torch.isfinite(gain), noise * (1 + above / unit) ** _POWER, torch.inf)

    def _draw_in_groups(self, prune: Tensor, restore: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take the first pair of each of up to 16 groups, the groups in a random order: times and entries."""
        lines, cols = prune.shape
        form = (lines, cols // self.group, self.group)
        start = torch.arange(0, cols, self.group, device=prune.device)
        left, right = prune.view(form).min(dim=2), restore.view(form).min(dim=2)
        groups = (left.values + right.values).topk(min(max(_STRENGTHS), form[1]), dim=1, largest=False)
        first = (left.indices + start).gather(1, groups.indices)
        second = (right.indices + start).gather(1, groups.indices)
        return groups.values, first, second
