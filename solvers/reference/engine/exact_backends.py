"""Branch and bound on one coupled block, by solvers that pip installs without a licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...base import Status
from .programs import Array, BlockProgram, require

_BINARY, _EQUALITY, _FREE = 16, 5, 0  # constraint types of DAQP
_TOLERANCE = 1e-8
_CUTOFF = 1 + 1e-6


@dataclass(frozen=True)
class Proof:
    """What a backend says; it is trusted only after its answer has been evaluated again.

    Attributes:
        z: (n,) binary, or None if it found nothing.
        bound: its lower bound on the objective, −inf if it has none.
        status: OPTIMAL if the backend calls its answer proven.
        nodes: branch-and-bound nodes.
    """

    z: Array | None
    bound: float
    status: Status
    nodes: int


@dataclass(frozen=True)
class Limits:
    """Budgets of one coupled block: seconds or None, nodes or None, and the seed."""

    seconds: float | None
    nodes: int | None
    seed: int


def _factor(quadratic: Array, diagonal: Array) -> tuple[Array, Array]:
    """Return L with L Lᵀ = Q − Diag(d), and d, lowered if a zero column or rounding leaves no factor.

    On masks every d gives the same objective, so a lower one costs only tightness.
    """
    lower = 0.0
    scale = max(float(np.abs(quadratic).max(initial=0.0)), np.finfo(np.float64).tiny)
    while True:
        lowered = diagonal - lower
        try:
            factor: Array = np.linalg.cholesky(quadratic - np.diag(lowered)).astype(np.float64)
            return factor, lowered
        except np.linalg.LinAlgError:
            lower = max(1e-14 * scale, 4 * lower)


def solve_with_scip(program: BlockProgram, diagonal: Array, incumbent: Array, limits: Limits) -> Proof:
    """Solve by SCIP (Bolusani et al., arXiv 2402.17702) through PySCIPOpt.

    The convex form is written as a sum of squares of linear forms, zᵀ (Q − Diag(d)) z = |Lᵀ z|², each square with its
    own bound: two to six times faster than one dense quadratic constraint on real rows of 48 columns.
    """
    scip: Any = require("pyscipopt", "exact")
    model = scip.Model()
    model.hideOutput()
    model.setParam("numerics/feastol", _TOLERANCE)
    model.setParam("randomization/randomseedshift", limits.seed % 2**31)
    model.setParam("parallel/maxnthreads", 1)
    if limits.seconds is not None:
        model.setParam("limits/time", max(limits.seconds, 1e-3))
    if limits.nodes is not None:
        model.setParam("limits/totalnodes", limits.nodes)
    factor, diagonal = _factor(program.quadratic, diagonal)
    z = [model.addVar(vtype="B") for _ in range(len(factor))]
    form = [model.addVar(lb=None) for _ in z]
    square = [model.addVar(lb=0.0) for _ in z]
    for i in range(len(z)):
        model.addCons(scip.quicksum(factor[j, i] * z[j] for j in range(i, len(z))) == form[i])
        model.addCons(form[i] * form[i] <= square[i])
    for member, pruned in zip(program.member, program.pruned, strict=True):
        total = scip.quicksum(z[j] for j in np.flatnonzero(member))
        model.addCons(total >= pruned if program.at_most else total == pruned)
    cost = program.linear + diagonal
    model.setObjective(scip.quicksum(square) + scip.quicksum(cost[j] * z[j] for j in range(len(z))))
    start = model.createSol()
    image = incumbent @ factor
    for j in range(len(z)):
        for variable, value in ((z[j], incumbent[j]), (form[j], image[j]), (square[j], image[j] ** 2)):
            model.setSolVal(start, variable, float(value))
    model.addSol(start)
    model.optimize()
    status = {"optimal": Status.OPTIMAL, "timelimit": Status.TIME_LIMIT, "totalnodelimit": Status.ITERATION_LIMIT}
    found = np.array([float(round(model.getVal(each))) for each in z]) if model.getNSols() else None
    return Proof(
        found,
        float(model.getDualbound()) + program.constant,
        status.get(model.getStatus(), Status.CONVERGED),
        int(model.getNTotalNodes()),
    )


def solve_with_daqp(program: BlockProgram, diagonal: Array, incumbent: Array, limits: Limits) -> Proof:
    """Solve by DAQP's branch and bound (Arnström, Bemporad, Axehill, IEEE TAC 2022).

    Only exit flag 1 is a proof; 4 (a semidefinite form that was regularised), 5 (out of time) and negative ones are
    not.
    """
    daqp: Any = require("daqp", "exact")
    n, cells = len(diagonal), len(program.member)
    upper = np.concatenate([np.ones(n), program.member.sum(axis=1) if program.at_most else program.pruned])
    lower = np.concatenate([np.zeros(n), program.pruned])
    kind = np.concatenate([np.full(n, _BINARY), np.full(cells, _FREE if program.at_most else _EQUALITY)])
    settings: dict[str, float] = {} if limits.seconds is None else {"time_limit": max(limits.seconds, 1e-3)}
    known = program.value(incumbent) - program.constant
    if known > 0:
        settings["fval_bound"] = known * _CUTOFF
    point, value, flag, info = daqp.solve(
        2 * (program.quadratic - np.diag(diagonal)),
        program.linear + diagonal,
        np.ascontiguousarray(program.member),
        upper,
        lower,
        kind.astype(np.int32),
        **settings,
    )
    status = {1: Status.OPTIMAL, 5: Status.TIME_LIMIT, -7: Status.TIME_LIMIT}.get(int(flag), Status.CONVERGED)
    found = np.round(np.asarray(point)) if flag > 0 else None
    bound = float(value) + program.constant if status is Status.OPTIMAL else -np.inf
    return Proof(found, bound, status, int(info["nodes"]))
