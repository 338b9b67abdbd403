"""Brute force over every mask of a tiny problem, written without the package: what the tests judge against."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Rule:
    """A set of masks: in every cell (flat indices of a (rows, cols) mask) ``keep`` entries are kept, or at most that.

    ``height`` rows share cells; ``kept`` and ``pruned`` are (rows, cols) bool, the entries that are fixed.
    """

    shape: tuple[int, int]
    cells: tuple[tuple[int, ...], ...]
    keep: int
    at_most: bool
    height: int = 1
    kept: Array | None = None
    pruned: Array | None = None

    @classmethod
    def groups(cls, shape: tuple[int, int], keep: int, group: int, at_most: bool = False) -> Rule:
        """``keep`` in each group of consecutive columns; a group of all columns is a row."""
        starts = range(0, shape[0] * shape[1], group)
        return cls(shape, tuple(tuple(range(start, start + group)) for start in starts), keep, at_most)

    @classmethod
    def layer(cls, shape: tuple[int, int], keep: int, at_most: bool = False) -> Rule:
        """``keep`` in the whole matrix."""
        return cls(shape, (tuple(range(shape[0] * shape[1])),), keep, at_most, height=shape[0])

    def fixing(self, kept: Tensor | None, pruned: Tensor | None) -> Rule:
        """Return the face with these entries fixed."""
        return replace(
            self, kept=None if kept is None else kept.numpy(), pruned=None if pruned is None else pruned.numpy()
        )

    def feasible(self, mask: Tensor | Array) -> bool:
        """Count by hand whether ``mask`` belongs to the set."""
        bits = np.asarray(mask)
        if bits.dtype != np.bool_ or bits.shape != self.shape:
            return False
        if self.kept is not None and not bits[self.kept].all():
            return False
        if self.pruned is not None and bits[self.pruned].any():
            return False
        counts = [int(bits.flat[list(cell)].sum()) for cell in self.cells]
        return all(count <= self.keep if self.at_most else count == self.keep for count in counts)

    @cached_property
    def blocks(self) -> list[Array]:
        """Every mask of each coupled block: arrays (masks, height, cols) of bool."""
        rows, cols = self.shape
        bits = _all_bits(self.height * cols)
        found = []
        for top in range(0, rows, self.height):
            first, last = top * cols, (top + self.height) * cols
            keep_row = np.ones(len(bits), dtype=bool)
            for cell in self.cells:
                if first <= cell[0] < last:
                    counts = bits[:, np.array(cell) - first].sum(axis=1)
                    keep_row &= counts <= self.keep if self.at_most else counts == self.keep
            if self.kept is not None:
                keep_row &= bits[:, self.kept.flat[first:last]].all(axis=1)
            if self.pruned is not None:
                keep_row &= ~bits[:, self.pruned.flat[first:last]].any(axis=1)
            found.append(bits[keep_row].reshape(-1, self.height, cols))
        return found

    def neighbours(self, mask: Array) -> Array:
        """Every feasible mask that is one exchange away (one single move too, for "at most"): (masks, rows, cols)."""
        found = []
        for cell in self.cells:
            kept = [i for i in cell if mask.flat[i]]
            pruned = [i for i in cell if not mask.flat[i]]
            moves = [(u, p) for u in kept for p in pruned]
            if self.at_most:
                moves += [(u, u) for u in kept] + [(p, p) for p in pruned]
            for first, second in moves:
                other = mask.copy()
                other.flat[first] = not mask.flat[first]
                other.flat[second] = not mask.flat[second]
                if self.feasible(other):
                    found.append(other)
        return np.array(found, dtype=bool).reshape(-1, *self.shape)


@dataclass(frozen=True, eq=False)
class HybridRule(Rule):
    """Tiles of ``tile`` rows: ``dense`` of them kept whole, in the others ``keep`` of each ``group`` columns."""

    group: int = 1
    dense: int = 0
    tile: int = 1

    @classmethod
    def of(cls, shape: tuple[int, int], keep: int, group: int, dense: int, tile: int) -> HybridRule:
        """The rule for masks of ``shape``."""
        return cls(shape, (), keep, False, shape[0], group=group, dense=dense, tile=tile)

    def feasible(self, mask: Tensor | Array) -> bool:
        """Look at every tile: whole, or with every count right."""
        if not super().feasible(mask):  # what is fixed, and the form
            return False
        bits = np.asarray(mask)
        whole = 0
        for top in range(0, self.shape[0], self.tile):
            part = bits[top : top + self.tile]
            counts = {int(line[i : i + self.group].sum()) for line in part for i in range(0, len(line), self.group)}
            if part.all():
                whole += 1
            elif counts != {self.keep}:
                return False
        return whole == self.dense

    @cached_property
    def blocks(self) -> list[Array]:
        """Every mask: (masks, rows, cols) bool."""
        bits = _all_bits(self.shape[0] * self.shape[1]).reshape(-1, *self.shape)
        counts = {self.keep * self.shape[1] // self.group, self.shape[1]}
        likely = bits[np.isin(bits.sum(axis=2), list(counts)).all(axis=1)]
        return [np.array([mask for mask in likely if self.feasible(mask)], dtype=bool).reshape(-1, *self.shape)]


@lru_cache(maxsize=16)
def _all_bits(size: int) -> Array:
    """Every bit string of this length, (2^size, size) bool."""
    return np.array(list(product((False, True), repeat=size)), dtype=bool).reshape(-1, size)


def numbers(tensor: Tensor) -> Array:
    """The values in extended precision where the machine has it, in float64 elsewhere."""
    return tensor.to(torch.float64).numpy().astype(np.longdouble)


def values(weight: Array, gram: Array, masks: Array) -> Array:
    """trace((W - M∘W) G (W - M∘W)ᵀ) for each of ``masks`` (..., rows, cols)."""
    residual = weight * ~masks
    return ((residual @ gram) * residual).sum(axis=(-1, -2))


def best_values(weight: Tensor, gram: Tensor, rule: Rule) -> Array:
    """The smallest objective of each coupled block over every feasible mask: (blocks,)."""
    wide, matrix = numbers(weight), numbers(gram)
    rows = wide.reshape(-1, rule.height, wide.shape[1])
    return np.array([values(rows[i], matrix, masks).min() for i, masks in enumerate(rule.blocks)])


def best_mask(weight: Tensor, gram: Tensor, rule: Rule) -> Array:
    """A mask with the smallest objective, (rows, cols) bool."""
    wide, matrix = numbers(weight), numbers(gram)
    rows = wide.reshape(-1, rule.height, wide.shape[1])
    parts = [masks[values(rows[i], matrix, masks).argmin()] for i, masks in enumerate(rule.blocks)]
    return np.concatenate(parts)


def objective(weight: Tensor, gram: Tensor, mask: Tensor | Array) -> float:
    """The objective in extended precision, returned as a float."""
    return float(values(numbers(weight), numbers(gram), np.asarray(mask)))


def exact_objective(weight: Tensor, gram: Tensor, mask: Tensor | Array) -> Fraction:
    """The objective in exact arithmetic."""
    bits = np.asarray(mask)
    matrix = [[Fraction(value) for value in line] for line in gram.to(torch.float64).tolist()]
    total = Fraction(0)
    for line, keeps in zip(weight.to(torch.float64).tolist(), bits.tolist(), strict=True):
        pruned = [(j, Fraction(value)) for j, (value, keep) in enumerate(zip(line, keeps, strict=True)) if not keep]
        total += sum((a * b * matrix[i][j] for i, a in pruned for j, b in pruned), Fraction(0))
    return total


def magnitude(weight: Tensor, gram: Tensor) -> float:
    """A scale for rounding errors: the sum over rows of (Σ |w_j| sqrt(G_jj))²."""
    root = numbers(gram).diagonal().clip(0) ** 0.5
    return float(((abs(numbers(weight)) * root).sum(axis=1) ** 2).sum())


def swap_gain(weight: Tensor, gram: Tensor, rule: Rule, mask: Tensor | Array) -> float:
    """The most that one move improves a coupled block, relative to its objective: all pairs, each from scratch.

    Gains below float64 noise (1e-14 of the sum of w² G_jj) count as none.
    """
    bits, wide, matrix = np.asarray(mask), numbers(weight), numbers(gram)
    around = rule.neighbours(bits)
    worst = 0.0
    for top in range(0, rule.shape[0], rule.height):
        part = slice(top, top + rule.height)
        inside = around[(around[:, part] != bits[part]).any(axis=(1, 2))][:, part]
        if not len(inside):
            continue
        now = float(values(wide[part], matrix, bits[part]))
        gain = now - float(values(wide[part], matrix, inside).min())
        noise = 1e-14 * float((wide[part] ** 2 * matrix.diagonal()).sum())
        if gain > noise:
            worst = max(worst, gain / now if now > 0 else float("inf"))
    return worst
