"""What the relaxation is judged by: Clarabel for its optimum, and a linear program for the Frank-Wolfe gap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import csr_matrix
from torch import Tensor

from tests.enumeration import Array, Rule, numbers

from .account import ACCOUNT, REFERENCE
from .problems import Case


def relaxed_optimum(case: Case) -> float:
    """Return the optimum of the convex relaxation, by Clarabel; skip, visibly, where it is not installed."""
    cp = pytest.importorskip("cvxpy", reason="the reference relaxation needs cvxpy: pip install 'relaxprune[exact]'")
    form, rule = case.form, case.rule
    scale = form.magnitude
    values, vectors = np.linalg.eigh(form.gram.astype(np.float64))
    factor = vectors * (values.clip(0) / scale) ** 0.5
    mask = cp.Variable(rule.shape)
    energy = cp.sum_squares(cp.multiply(form.weight.astype(np.float64), mask - form.centre) @ factor)
    linear = cp.sum(cp.multiply((form.linear / scale).astype(np.float64), mask))
    counts = _incidence(rule) @ cp.vec(mask, order="C")
    limits = [mask >= 0, mask <= 1, counts <= rule.keep if rule.at_most else counts == rule.keep]
    limits += [mask[entries] == value for entries, value in ((rule.kept, 1), (rule.pruned, 0)) if entries is not None]
    program = cp.Problem(cp.Minimize(energy + linear), limits)
    program.solve(solver=cp.CLARABEL)
    assert program.status == cp.OPTIMAL, f"Clarabel ended with {program.status} on {case.label}"
    ACCOUNT.ran.add(REFERENCE)
    return float(program.value) * scale


def frank_wolfe_gap(case: Case, point: Tensor) -> float:
    """Return max ⟨∇f(point), point − v⟩ over the set: how far f(point) can be above the relaxation's optimum."""
    values = numbers(point.cpu())
    gradient = case.form.gradient(values)
    return float((gradient * values).sum()) - linear_minimum(gradient, case.rule)


def linear_minimum(costs: Array, rule: Rule) -> float:
    """Return the least ⟨costs, v⟩ over the set, by the simplex method."""
    wide = costs.astype(np.float64)
    scale = float(abs(wide).max()) or 1.0
    bounds = np.stack([np.zeros(wide.size), np.ones(wide.size)], axis=1)
    if rule.kept is not None:
        bounds[rule.kept.ravel(), 0] = 1
    if rule.pruned is not None:
        bounds[rule.pruned.ravel(), 1] = 0
    matrix, limit = _incidence(rule), np.full(len(rule.cells), float(rule.keep))
    counts = {"A_ub": matrix, "b_ub": limit} if rule.at_most else {"A_eq": matrix, "b_eq": limit}
    found = linprog(wide.ravel() / scale, bounds=bounds, method="highs-ds", **counts)
    assert found.status == 0, found.message
    return float(found.fun) * scale


def distance(point: Tensor, rule: Rule) -> float:
    """Return the largest violation of the box, of a count or of a fixed entry by a relaxed mask."""
    values = point.double().cpu().numpy()
    excess = _incidence(rule) @ values.ravel() - rule.keep
    parts = [-values, values - 1, excess if rule.at_most else abs(excess)]
    if rule.kept is not None:
        parts.append(1 - values[rule.kept])
    if rule.pruned is not None:
        parts.append(values[rule.pruned])
    return max((float(part.max()) for part in parts if part.size), default=0.0)


def _incidence(rule: Rule) -> csr_matrix:
    """Which entries each count is over: (cells, rows · cols)."""
    lengths = [len(cell) for cell in rule.cells]
    lines = np.repeat(np.arange(len(rule.cells)), lengths)
    columns = np.concatenate([np.array(cell) for cell in rule.cells])
    size = rule.shape[0] * rule.shape[1]
    return csr_matrix((np.ones(len(columns)), (lines, columns)), shape=(len(rule.cells), size))
