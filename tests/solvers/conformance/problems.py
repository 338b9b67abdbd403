"""Problems for every solver: tiny ones with their optimum by enumeration, and small layers; written without solvers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from relaxprune import NM, Hybrid, KSparse, MaskProblem, QuadraticProblem
from relaxprune.problems import Polytope, Problem
from relaxprune.problems.polytopes.transposable import TransposableNM
from tests import random_problems
from tests.enumeration import Array, HybridRule, Rule, numbers
from tests.layers import correlated_gram
from tests.random_problems import Draw, fixed_entries, make_gram, make_weight

KINDS = ("mask", "quadratic")
COUNTED = (*random_problems.SETS, "transposable", "face")  # every entry has counts that are those of all masks
SETS = (*COUNTED, "hybrid", "hybrid face")
LAYERS = ("row", "row at most", "layer", "2:4", "transposable 2:4", "face")
_EDGE = 4  # a tile, or a group, of the sets in LAYERS
# NumPy's extended precision where it is wider; a margin for one rounding of float64 sums everywhere.
MARGIN = 1e-11


@dataclass(frozen=True, eq=False)
class Form:
    """f(m) = Σ_rows (w∘(m − c))ᵀ G (w∘(m − c)) + linearᵀ m, in extended precision: both kinds of problem.

    ``weight`` and ``linear`` are (rows, cols), ``gram`` is (cols, cols) and symmetric, ``centre`` c is 1 for masks and
    0 otherwise.
    """

    weight: Array
    gram: Array
    linear: Array
    centre: int

    def values(self, points: Array, rows: slice = slice(None)) -> Array:
        """f over ``rows`` at each of ``points`` (..., rows, cols)."""
        inner = self.weight[rows] * (points.astype(np.longdouble) - self.centre)
        return ((inner @ self.gram) * inner + self.linear[rows] * points).sum(axis=(-1, -2))

    def gradient(self, point: Array) -> Array:
        """∇f, (rows, cols)."""
        inner = self.weight * (point.astype(np.longdouble) - self.centre)
        return 2 * self.weight * (inner @ self.gram) + self.linear

    @cached_property
    def magnitude(self) -> float:
        """A scale for rounding errors: Σ_rows (Σ |w_j| sqrt(G_jj))² + Σ |linear|."""
        root = self.gram.diagonal().clip(0) ** 0.5
        return float(((abs(self.weight) * root).sum(axis=1) ** 2).sum() + abs(self.linear).sum())


@dataclass(frozen=True, eq=False)
class Case:
    """A problem, its objective and its set written independently, and a name for messages."""

    problem: Problem
    form: Form
    rule: Rule
    label: str

    @property
    def margin(self) -> float:
        """What rounding may change of an objective."""
        return MARGIN * self.form.magnitude

    def value(self, point: Tensor) -> float:
        """The objective at a mask or relaxed mask, in extended precision."""
        return float(self.form.values(numbers(point.cpu())))

    @cached_property
    def best(self) -> Array:
        """The proven optimum of each coupled block, (blocks,), by enumeration."""
        height = self.rule.height
        tops = range(0, self.rule.shape[0], height)
        found = [
            self.form.values(masks, slice(top, top + height)).min()
            for top, masks in zip(tops, self.rule.blocks, strict=True)
        ]
        return np.array(found, dtype=np.float64)


@dataclass(frozen=True)
class Parts:
    """What a problem is made of, before it becomes one: so that it can be permuted, or moved to a device."""

    kind: str
    weight: Tensor  # (rows, cols); the linear term of a quadratic problem
    gram: Tensor  # (cols, cols)
    polytope: Polytope
    rule: Rule
    label: str
    kept: Tensor | None = None
    pruned: Tensor | None = None

    def case(self, dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Case:
        """Build the problem in this dtype on this device, and its independent twin from the very same numbers."""
        weight, gram = self.weight.to(dtype), self.gram.to(dtype)
        ones, nothing = np.ones(self.rule.shape, np.longdouble), np.zeros(self.rule.shape, np.longdouble)
        home = device or torch.device("cpu")
        kept, pruned = (None if part is None else part.to(home) for part in (self.kept, self.pruned))
        make = MaskProblem if self.kind == "mask" else QuadraticProblem
        first, second = (weight, gram) if self.kind == "mask" else (gram, weight)
        problem = make(first.to(home), second.to(home), self.polytope, fixed_kept=kept, fixed_pruned=pruned)
        symmetric = numbers((gram + gram.T) / 2)  # rounded to this dtype, as the problem does
        if self.kind == "mask":
            form = Form(numbers(weight), symmetric, nothing, 1)
        else:
            form = Form(ones, symmetric, numbers(weight), 0)
        return Case(problem, form, self.rule.fixing(self.kept, self.pruned), f"{self.label}, {dtype}, {home}")

    def permuted(self, seed: int) -> Parts:
        """Return the same problem with its columns, and its rows where that is one, in another order."""
        draw = Draw(seed)
        rows, cols = self.rule.shape
        tall = _EDGE if isinstance(self.polytope, TransposableNM) else 1
        wide = cols if isinstance(self.polytope, KSparse) else _EDGE
        down, across = _order(rows, tall, draw), _order(cols, wide, draw)
        move = (down.unsqueeze(1), across)
        kept, pruned = (None if part is None else part[move] for part in (self.kept, self.pruned))
        gram = self.gram[across.unsqueeze(1), across]
        label = f"{self.label}, permuted"
        return Parts(self.kind, self.weight[move], gram, self.polytope, self.rule, label, kept, pruned)


def tiny(
    kind: str, set_name: str, seed: int, gram_kind: str = "gaussian", scale: float = 1.0, weight_kind: str = "normal"
) -> Parts:
    """A problem that can be enumerated.

    Args:
        kind: one of ``KINDS``.
        set_name: one of ``SETS``; "face" is any other of ``COUNTED`` with fixed entries.
        seed: of sizes, counts and numbers.
        gram_kind: one of ``random_problems.GRAMS``.
        scale: factor on the weight, or on both terms of a quadratic problem.
        weight_kind: one of ``random_problems.WEIGHTS``.
    """
    draw = Draw(seed)
    base = draw.pick(COUNTED[:-1]) if set_name == "face" else set_name.removesuffix(" face")
    own = {"transposable": _transposable, "hybrid": _hybrid}
    polytope, rule = own[base](draw) if base in own else random_problems.make_set(base, draw)
    gram = make_gram(gram_kind, rule.shape[1], draw)
    weight = make_weight(weight_kind, rule.shape, gram, draw)
    kept, pruned = fixed_entries(rule, draw) if set_name.endswith("face") else (None, None)
    label = f"seed {seed}: {kind}, {polytope}, {rule.shape}, gram {gram_kind}, weight {weight_kind}, scale {scale:g}"
    if kind == "quadratic":
        # Of the size of the quadratic term, and negative more often than not: selecting must pay.
        weight = (weight.double() - 0.5) * gram.double().diagonal() * rule.shape[1] / 4 * scale
        gram = gram * scale
    else:
        weight = weight * scale
    return Parts(kind, weight, gram, polytope, rule, label, kept, pruned)


def layer(kind: str, set_name: str, seed: int = 0, shape: tuple[int, int] = (8, 16)) -> Parts:
    """A problem of the kind that layers are, over one of ``LAYERS``: half of the entries are kept.

    Args:
        kind: one of ``KINDS``.
        set_name: one of ``LAYERS``; "face" is "row" with fixed entries.
        seed: of the numbers.
        shape: (rows, cols), multiples of 4.
    """
    draw, (rows, cols) = Draw(seed), shape
    polytope, rule = _half(set_name, shape)
    gram, weight = correlated_gram(cols, draw), draw.normal(rows, cols)
    kept = pruned = None
    if set_name == "face":
        mask = polytope.round(draw.uniform(0, 1, rows, cols))
        kept, pruned = mask & draw.bits(0.3, rows, cols), ~mask & draw.bits(0.3, rows, cols)
    if kind == "quadratic":
        weight = (weight - 1) * gram.diagonal() * cols / 4
    return Parts(kind, weight, gram, polytope, rule, f"{kind} layer, {set_name}, seed {seed}", kept, pruned)


def _half(set_name: str, shape: tuple[int, int]) -> tuple[Polytope, Rule]:
    """Return the set in which half of the entries are kept, and its rule."""
    rows, cols = shape
    if set_name == "layer":
        return KSparse(rows * cols // 2, "layer"), Rule.layer(shape, rows * cols // 2)
    if set_name == "2:4":
        return NM(2, _EDGE), Rule.groups(shape, 2, _EDGE)
    if set_name == "transposable 2:4":
        return TransposableNM(2, _EDGE), _tiles(shape, 2, _EDGE)
    at_most = set_name == "row at most"
    return KSparse(cols // 2, at_most=at_most), Rule.groups(shape, cols // 2, cols, at_most)


def _tiles(shape: tuple[int, int], keep: int, group: int) -> Rule:
    """``keep`` in every row and column of each group x group tile."""
    index = np.arange(shape[0] * shape[1]).reshape(shape)
    cells = []
    for top in range(0, shape[0], group):
        for left in range(0, shape[1], group):
            tile = index[top : top + group, left : left + group]
            cells += [tuple(int(i) for i in line) for line in (*tile, *tile.T)]
    return Rule(shape, tuple(cells), keep, at_most=False, height=group)


def _transposable(draw: Draw) -> tuple[Polytope, Rule]:
    """A transposable set of a few small tiles and its rule."""
    group = draw.whole(1, 3)
    shape = (group * draw.whole(1, 2), group * draw.whole(1, 8 // group**2 + 1))
    keep = draw.whole(0, group)
    return TransposableNM(keep, group), _tiles(shape, keep, group)


def _hybrid(draw: Draw) -> tuple[Polytope, Rule]:
    """A hybrid set of a few small tiles of rows and its rule."""
    tile, group = draw.whole(1, 2), draw.whole(2, 4)
    shape = (tile * draw.whole(1, 2), group if group > 2 else group * draw.whole(1, 2))
    keep, dense = draw.whole(0, group - 1), draw.whole(0, shape[0] // tile)
    return Hybrid(keep, group, dense, tile), HybridRule.of(shape, keep, group, dense, tile)


def _order(size: int, group: int, draw: Draw) -> Tensor:
    """An order of ``size`` lines that keeps groups of ``group`` together."""
    numbers = torch.arange(size).view(-1, group)
    shuffled = numbers[torch.randperm(len(numbers), generator=draw.generator)]
    return torch.stack([line[torch.randperm(group, generator=draw.generator)] for line in shuffled]).view(-1)
