"""Tiny problems of every kind and set, with the optimum of every coupled block in rationals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from relaxprune import (
    NM,
    Certificate,
    KSparse,
    MaskProblem,
    QuadraticProblem,
    ReconstructionProblem,
    TransposableNM,
    WeightCertificate,
    certify,
    certify_weights,
)
from relaxprune.problems import BaseProblem, Polytope
from tests.enumeration import Array, Rule
from tests.random_problems import Draw
from tests.tiles import tile_masks

Line = list[Fraction]
SHAPE, SQUARE = (2, 4), (4, 4)
SETS: dict[str, tuple[Polytope, Rule | None]] = {
    "row": (KSparse(2), Rule.groups(SHAPE, 2, 4)),
    "row at most": (KSparse(2, at_most=True), Rule.groups(SHAPE, 2, 4, at_most=True)),
    "layer": (KSparse(4, per="layer"), Rule.layer(SHAPE, 4)),
    "layer at most": (KSparse(3, per="layer", at_most=True), Rule.layer(SHAPE, 3, at_most=True)),
    "nm": (NM(1, 2), Rule.groups(SHAPE, 1, 2)),
    "nm at most": (NM(1, 2, at_most=True), Rule.groups(SHAPE, 1, 2, at_most=True)),
    "transposable": (TransposableNM(2, 4), None),
}
GRAMS: dict[str, Callable[[Draw], Tensor]] = {
    "full": lambda draw: _second_moment(draw.normal(12, 4)),
    "singular": lambda draw: _second_moment(draw.normal(2, 4)),
    "indefinite": lambda draw: _lowered(_second_moment(draw.normal(2, 4))),
    "dead": lambda draw: _second_moment(draw.normal(12, 4) * torch.tensor([1.0, 0.0, 1.0, 1.0])),
    "scaled": lambda draw: _second_moment(draw.normal(12, 4) * 10 ** draw.uniform(-30, 30, 4)),
    "tiny": lambda draw: _second_moment(draw.normal(12, 4) * 1e-110),
    "diagonal": lambda draw: torch.diag(10 ** draw.uniform(-3, 3, 4)),
}
KINDS = ("mask", "face", "quadratic", "weights", "damped", "cross")
LAYERS = ("mask", "face", "weights", "damped", "cross")  # what the command line knows


@dataclass(frozen=True, eq=False)
class Target:
    """A problem to forge certificates of.

    Attributes:
        name: its kind, set and Gram.
        problem: the problem.
        layer: what a problem file holds of it.
        optimum: of every coupled block.
        certificates: honest ones of a bad answer, so that its own objective refuses nothing.
    """

    name: str
    problem: BaseProblem
    layer: dict[str, Tensor]
    optimum: tuple[Fraction, ...]
    certificates: tuple[Certificate, ...]

    def above(self, block: int) -> float:
        """The least float above the optimum of a block."""
        near = float(self.optimum[block])
        return near if Fraction(near) > self.optimum[block] else float(np.nextafter(near, np.inf))

    def excess(self, certificate: Certificate, rebuilt: float) -> Fraction:
        """How far the bounds of an accepted certificate are above the optimum, at most, as a share of its size.

        ``rebuilt`` is what its verification says.
        """
        total = sum(self.optimum, Fraction(0))
        found = [
            Fraction(bound) - best
            for bound, best in zip(certificate.block_lower_bound.tolist(), self.optimum, strict=True)
        ]
        highest = max(*found, Fraction(certificate.lower_bound) - total, Fraction(rebuilt) - total)
        return highest / (abs(total) or 1)


def names() -> list[str]:
    """Every kind with every set and every Gram that suits it."""
    suits = {"weights": ("full", "dead", "tiny", "diagonal"), "damped": tuple(GRAMS), "cross": ("full", "scaled")}
    return [" / ".join((kind, name, gram)) for name in SETS for kind in KINDS for gram in suits.get(kind, tuple(GRAMS))]


@cache
def target(name: str) -> Target:
    """Make a target by its name, always the same."""
    kind, set_name, gram_name = name.split(" / ")
    draw = Draw(names().index(name))
    polytope, rule = SETS[set_name]
    shape = rule.shape if rule else SQUARE
    weight, gram = draw.normal(*shape), GRAMS[gram_name](draw)
    layer = {"weight": weight, "gram": gram}
    answer = polytope.round(draw.normal(*shape))
    fixed = {}
    if kind == "face":
        fixed = {"fixed_kept": answer & draw.bits(0.3, *shape), "fixed_pruned": ~answer & draw.bits(0.3, *shape)}
    height = polytope.rows_per_block(shape)
    if kind in ("weights", "damped", "cross"):
        if kind == "cross":
            layer |= _joint(layer, draw)
        moving = ReconstructionProblem(**layer, polytope=polytope, damping=0.0 if kind == "weights" else 0.01)
        values = [_least_errors(moving, row) for row in range(shape[0])]
        optimum = _optimum(values, _block_masks(rule, shape, {}), height)
        return Target(name, moving, layer, optimum, tuple(_of_weights(moving, answer)))
    problem: MaskProblem | QuadraticProblem
    if kind == "quadratic":
        scale = gram.diagonal().amax()
        problem = QuadraticProblem(gram, scale * draw.normal(*shape), polytope)
        values = [_quadratic_values(problem, row) for row in range(shape[0])]
    else:
        problem = MaskProblem(weight, gram, polytope, **fixed)
        values = [_mask_values(problem, row) for row in range(shape[0])]
    optimum = _optimum(values, _block_masks(rule, shape, fixed), height)
    methods = ("fw", "diagonal", "sdp", "exact")
    return Target(name, problem, layer, optimum, tuple(certify(problem, answer, method) for method in methods))


def _of_weights(problem: ReconstructionProblem, answer: Tensor) -> Iterator[WeightCertificate]:
    """Certificates of weights by every method that the problem allows."""
    weight = problem.weight.double() * answer * 0.5
    yield certify_weights(problem, weight)
    if float(problem.prepared.correlation().det()) > 1e-6:
        yield certify_weights(problem, weight, "exact")


def _second_moment(inputs: Tensor) -> Tensor:
    moment = inputs.T.double() @ inputs.double() / len(inputs)
    return (moment + moment.T) / 2


def _lowered(gram: Tensor) -> Tensor:
    return gram - 4e-4 * torch.diag(gram.diagonal())


def _joint(layer: dict[str, Tensor], draw: Draw) -> dict[str, Tensor]:
    """The moments of inputs of which ``gram`` is disturbed."""
    root = torch.linalg.cholesky(layer["gram"] + 1e-12 * torch.diag(layer["gram"].diagonal())).T
    dense = root + 0.1 * draw.normal(4, 4) * root.diagonal()
    return {"cross": dense.T @ root, "dense_gram": _second_moment(dense) * 4, "gram": _second_moment(root) * 4}


def _exact(matrix: Tensor) -> list[Line]:
    return [[Fraction(value) for value in line] for line in matrix.double().tolist()]


def _quadratic(matrix: list[Line], values: Line) -> Fraction:
    size = range(len(values))
    return sum((matrix[i][j] * values[i] * values[j] for i in size for j in size), Fraction(0))


def _supports(cols: int) -> list[tuple[bool, ...]]:
    return list(product((False, True), repeat=cols))


def _mask_values(problem: MaskProblem, row: int) -> dict[tuple[bool, ...], Fraction]:
    """The objective of one row by its kept entries."""
    weight, gram = _exact(problem.weight)[row], _exact(problem.gram)
    return {
        kept: _quadratic(gram, [w * (not keep) for w, keep in zip(weight, kept, strict=True)])
        for kept in _supports(len(weight))
    }


def _quadratic_values(problem: QuadraticProblem, row: int) -> dict[tuple[bool, ...], Fraction]:
    linear, matrix = _exact(problem.linear)[row], _exact(problem.prepared.matrix)
    return {
        kept: _quadratic(matrix, [Fraction(keep) for keep in kept])
        + sum((value for value, keep in zip(linear, kept, strict=True) if keep), Fraction(0))
        for kept in _supports(len(linear))
    }


def _least_errors(problem: ReconstructionProblem, row: int) -> dict[tuple[bool, ...], Fraction]:
    """The least error of one row by the entries that may be other than 0."""
    weight, matrix = _exact(problem.weight)[row], _exact(problem.prepared.matrix)
    size, ridge = range(len(weight)), Fraction(problem.ridge)
    if problem.cross is None or problem.dense_gram is None:
        energy, moment, ridge = matrix, matrix, Fraction(0)
    else:
        energy, moment = _exact(problem.dense_gram), _exact(problem.cross)
    right = [sum((weight[i] * moment[i][j] for i in size), ridge * weight[j]) for j in size]
    whole = _quadratic(energy, weight) + ridge * sum(value * value for value in weight)
    return {kept: whole - _removed(matrix, right, kept) for kept in _supports(len(weight))}


def _removed(matrix: list[Line], right: Line, kept: tuple[bool, ...]) -> Fraction:
    """bᵀ H⁻¹ b over the kept entries, by elimination; what has no pivot has nothing beside it."""
    places = [j for j, keep in enumerate(kept) if keep]
    table = [[*(matrix[i][j] for j in places), right[i]] for i in places]
    total = Fraction(0)
    for k, line in enumerate(table):
        if line[k] == 0:
            continue
        total += line[-1] * line[-1] / line[k]
        for other in table[k + 1 :]:
            factor = other[k] / line[k]
            other[:] = [one - factor * two for one, two in zip(other, line, strict=True)]
    return total


def _block_masks(rule: Rule | None, shape: tuple[int, int], fixed: dict[str, Tensor]) -> list[Array]:
    """The masks of every coupled block."""
    kept, pruned = fixed.get("fixed_kept"), fixed.get("fixed_pruned")
    if rule is not None:
        return rule.fixing(kept, pruned).blocks
    masks = tile_masks(4, 2)
    none = np.zeros(shape, dtype=bool)
    must, never = (none if item is None else item.numpy() for item in (kept, pruned))
    return [masks[~(must & ~masks).any(axis=(1, 2)) & ~(never & masks).any(axis=(1, 2))]]


def _optimum(values: list[dict[tuple[bool, ...], Fraction]], blocks: list[Array], height: int) -> tuple[Fraction, ...]:
    """The least sum of every block's rows."""
    found = []
    for place, masks in enumerate(blocks):
        rows = values[place * height : (place + 1) * height]
        sums = (
            sum((own[tuple(line)] for own, line in zip(rows, mask.tolist(), strict=True)), Fraction(0))
            for mask in masks
        )
        found.append(min(sums))
    return tuple(found)
