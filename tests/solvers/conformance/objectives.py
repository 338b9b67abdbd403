"""Layers whose objective has several parts, with the objective written independently, row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from relaxprune import NM, KSparse, MaskProblem, Objective
from relaxprune.problems import Polytope
from tests import random_problems
from tests.enumeration import Array, Rule, numbers
from tests.random_problems import Draw, fixed_entries, make_gram, make_weight

from .problems import Case, Form

PARTS = ("groups", "fisher", "linear", "everything", "outputs", "all and outputs")
ROW_SETS = ("row", "row at most", "nm", "nm at most", "face")
SETS = (*ROW_SETS, "layer")  # a count over the layer has one Gram, and rows that nothing else couples


@dataclass(frozen=True, eq=False)
class RowForm(Form):
    """f(m) = tr(S R G Rᵀ) + Σ_i r_i H_i r_iᵀ − Σ linear ∘ r, r = w ∘ (1 − m), in extended precision.

    ``matrices`` H is (rows, cols, cols), ``outputs`` S (rows, rows) goes with ``gram`` G, ``linear`` is w ∘ that of V.
    """

    matrices: Array
    outputs: Array

    def values(self, points: Array, rows: slice = slice(None)) -> Array:
        """f over ``rows`` at each of ``points`` (..., rows, cols)."""
        pruned = 1 - points.astype(np.longdouble)
        error = self.weight[rows] * pruned
        energy = (np.einsum("...ij,ijk->...ik", error, self.matrices[rows]) * error).sum(axis=(-1, -2))
        energy = energy + ((self.outputs[rows, rows] @ error @ self.gram) * error).sum(axis=(-1, -2))
        return energy - (self.linear[rows] * pruned).sum(axis=(-1, -2))

    def gradient(self, point: Array) -> Array:
        """∇f, (rows, cols)."""
        error = self.weight * (1 - point)
        image = np.einsum("ij,ijk->ik", error, self.matrices) + self.outputs @ error @ self.gram
        return -2 * self.weight * image + self.linear

    @cached_property
    def magnitude(self) -> float:
        """(Σ |w_ij| sqrt(Q_ij,ij))² + Σ |linear|, Q over all rows."""
        own = np.einsum("ijj->ij", self.matrices) + np.outer(self.outputs.diagonal(), self.gram.diagonal())
        return float((abs(self.weight) * own.clip(0) ** 0.5).sum() ** 2 + abs(self.linear).sum())


def with_parts(
    parts: str, set_name: str, seed: int, dtype: torch.dtype = torch.float64, gram_kind: str = "gaussian"
) -> Case:
    """A tiny layer.

    Args:
        parts: one of ``PARTS``.
        set_name: one of ``SETS``; a count over the layer has one Gram.
        seed: of sizes, counts and numbers.
        dtype: of all tensors.
        gram_kind: one of ``random_problems.GRAMS``.
    """
    draw = Draw(seed)
    has, base = _has(parts), "row" if set_name == "face" else set_name
    polytope, rule = _few_entries(base, draw) if "outputs" in has else random_problems.make_set(base, draw)
    rows, cols = rule.shape
    several = "groups" in has and set_name != "layer"
    grams = [make_gram(gram_kind, cols, draw).to(dtype) for _ in range(2 if several else 1)]
    groups = torch.randint(0, 2, (rows,), generator=draw.generator) if several else None
    weight = make_weight("normal", rule.shape, grams[0].double(), draw).to(dtype)
    fisher = draw.normal(rows, draw.whole(1, 3), cols).to(dtype) if "fisher" in has else None
    linear = (3 * draw.normal(rows, cols)).to(dtype) if "linear" in has else None
    kept, pruned = fixed_entries(rule, draw) if set_name == "face" else (None, None)
    outputs = make_gram("gaussian", rows, draw).to(dtype) if "outputs" in has else None
    objective = Objective(grams, row_groups=groups, fisher=fisher, linear=linear, outputs=outputs)
    problem = MaskProblem(weight, objective, polytope, fixed_kept=kept, fixed_pruned=pruned)
    rule = rule.fixing(kept, pruned)
    label = f"seed {seed}: {parts}, {polytope}, {rule.shape}, gram {gram_kind}"
    return Case(problem, _form(weight, grams, problem.minimised), rule, label)


def _has(parts: str) -> set[str]:
    """Return the parts of an objective by one of the names in ``PARTS``."""
    every = {"everything": {"groups", "fisher", "linear"}, "all and outputs": {"fisher", "linear", "outputs"}}
    return every.get(parts, {parts})


def _few_entries(kind: str, draw: Draw) -> tuple[Polytope, Rule]:
    """A set of ``ROW_SETS`` whose masks of all rows together can be listed, as one coupled block."""
    at_most, nm = kind.endswith("at most"), kind.startswith("nm")
    shape = (draw.whole(1, 3), 4 if nm else draw.whole(2, 4))
    group = 2 if nm else shape[1]
    keep = draw.whole(0, group)
    polytope = NM(keep, group, at_most) if nm else KSparse(keep, at_most=at_most)
    return polytope, replace(Rule.groups(shape, keep, group, at_most), height=shape[0])


def _form(weight: Tensor, grams: list[Tensor], objective: Objective) -> RowForm:
    """Write the same objective row by row."""
    wide, symmetric = numbers(weight), [numbers((gram + gram.T) / 2) for gram in grams]
    rows, groups, outputs = len(weight), objective.row_groups, np.zeros((len(weight), len(weight)))
    chosen = [0] * rows if groups is None else groups.tolist()
    matrices = np.stack([symmetric[number] for number in chosen])
    if objective.outputs is not None:
        outputs, matrices = numbers(objective.outputs.matrix), 0 * matrices
    if objective.fisher is not None:
        own = numbers(objective.fisher)
        matrices = matrices + np.einsum("irj,irk->ijk", own, own)
    slope = np.zeros_like(wide) if objective.linear is None else wide * numbers(objective.linear)
    return RowForm(wide, symmetric[0], slope, 1, matrices, outputs)
