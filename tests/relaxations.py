"""Judging answers to the convex relaxation without the package: values, gaps and minima, in numpy and by Clarabel."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from relaxprune import MaskProblem

from .enumeration import Rule


def value_and_gap(problem: MaskProblem, rule: Rule, point: Tensor) -> tuple[float, float]:
    """f and its Frank-Wolfe gap at a relaxed mask, summed over the matrix; the linear minimum is found by sorting."""
    weight, gram = problem.weight.double().numpy(), problem.gram.double().numpy()
    mask = point.double().numpy()
    image = (weight * (1 - mask)) @ gram
    gradient = -2 * weight * image
    best = 0.0
    kept = np.zeros(rule.shape, bool) if rule.kept is None else rule.kept
    pruned = np.zeros(rule.shape, bool) if rule.pruned is None else rule.pruned
    for cell in rule.cells:
        index = list(cell)
        costs, must, never = gradient.flat[index], kept.flat[index], pruned.flat[index]
        others = np.sort(costs[~must & ~never])[: rule.keep - int(must.sum())]
        best += costs[must].sum() + (others[others < 0].sum() if rule.at_most else others.sum())
    return float((image * weight * (1 - mask)).sum()), float((gradient * mask).sum() - best)


def violation(rule: Rule, point: Tensor) -> float:
    """How far a relaxed mask is from the set: the worst of box, counts and fixed entries."""
    mask = point.double().numpy()
    worst = max(float(-mask.min()), float(mask.max() - 1), 0.0)
    for cell in rule.cells:
        excess = float(mask.flat[list(cell)].sum()) - rule.keep
        worst = max(worst, excess if rule.at_most else abs(excess))
    if rule.kept is not None and rule.kept.any():
        worst = max(worst, float(1 - mask[rule.kept].min()))
    if rule.pruned is not None and rule.pruned.any():
        worst = max(worst, float(mask[rule.pruned].max()))
    return worst


def clarabel_minimum(problem: MaskProblem, rule: Rule) -> float:
    """The minimum of the relaxation by an interior point method."""
    import cvxpy as cp

    weight = problem.weight.double().numpy()
    eigenvalues, vectors = np.linalg.eigh(problem.gram.double().numpy())
    root = (vectors * np.sqrt(eigenvalues.clip(0))).T  # rootᵀ root = G
    mask = cp.Variable(rule.shape, bounds=[0, 1])
    flat = cp.reshape(mask, (rule.shape[0] * rule.shape[1],), order="C")
    counts = [cp.sum(flat[list(cell)]) for cell in rule.cells]
    limits = [count <= rule.keep if rule.at_most else count == rule.keep for count in counts]
    if rule.kept is not None and rule.kept.any():
        limits.append(mask[rule.kept] == 1)
    if rule.pruned is not None and rule.pruned.any():
        limits.append(mask[rule.pruned] == 0)
    task = cp.Problem(cp.Minimize(cp.sum_squares(root @ cp.multiply(weight, 1 - mask).T)), limits)
    task.solve(solver="CLARABEL")
    return float(task.value)
