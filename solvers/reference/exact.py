"""The binary problem itself, to a proof: mixed-integer solvers on small coupled blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from relaxprune.problems import Gram, Problem
from relaxprune.problems.checks import one_of
from relaxprune.problems.tightening import largest_tightening

from ..base import CHECK_EVERY, Answer, Counts, Run, Solver, Status
from ..driver import Band, Driver
from ..exchange.engine.local_search import MATRICES, LocalSearch
from .engine.exact_backends import Limits, Proof, solve_with_daqp, solve_with_scip
from .engine.programs import Array, BlockProgram, block_program, refuse_more_free_than, require

_FREE_LIMIT = 64
_BACKENDS = {"scip": solve_with_scip, "daqp": solve_with_daqp}
_MODULES = {"scip": "pyscipopt", "daqp": "daqp"}
_AGREES = 1e-6  # relative, between a backend's bound and our own evaluation of its mask
_ROUNDS, _COPIES = 150, 8
_MARGIN = 1e-5  # in correlation scaling


@dataclass(frozen=True)
class Exact(Solver):
    """Prove the best mask of each coupled block of at most 64 free entries by branch and bound.

    The backend gets the objective in its tightened form zᵀ(Q − Diag(d))z + d·z, equal on masks and larger between them
    (Billionnet and Elloumi 2007), with a short iterated local search as the first incumbent. Status OPTIMAL means that
    the backend proved it AND our evaluation of its mask agrees with its bound to 1e-6; a block that ran out of time
    keeps the best mask found. ``max_iterations`` bounds SCIP's nodes per block (DAQP has no such limit).

    Args:
        backend: ``"scip"`` or, as a second opinion, ``"daqp"``.
    """

    backend: str = "scip"

    name: ClassVar[str] = "exact"
    summary: ClassVar[str] = "the proven best mask by branch and bound (SCIP or DAQP), up to 64 free entries a row"
    default_polish: ClassVar[str | None] = None
    honours: ClassVar[frozenset[str]] = frozenset({"start", "max_iterations", "time_limit_s"})
    only_images: ClassVar[bool] = False
    proves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        one_of("backend", self.backend, _BACKENDS)

    def check(self, problem: Problem) -> None:
        """Refuse blocks of more than 64 free entries, and a backend that is not installed."""
        refuse_more_free_than(_FREE_LIMIT, self.name, problem)
        require(_MODULES[self.backend], self.name)

    def budgets(self) -> frozenset[str]:
        """Return the budgets in use: DAQP takes only a time limit."""
        return self.honours - ({"max_iterations"} if self.backend == "daqp" else set())

    def distributions(self) -> tuple[str, ...]:
        """Return the backend's package, which is named like its module."""
        return (_MODULES[self.backend],)

    def run(self, problem: Problem, run: Run) -> Answer:
        """Search briefly for first incumbents, then prove one coupled block after the other."""
        polytope, group = problem.polytope, problem.polytope.group_size(problem.shape)
        rows = problem.over(polytope.loosened()).split(MATRICES * _COPIES, run.memory_bytes)
        driver = Driver(self.name, run, rows if polytope.separable(problem.shape) else (), problem.split(1, 0))
        begun = driver.sweep(lambda band: _improve(band, group))
        return driver.sweep(self._prove, begun)

    def _prove(self, band: Band[Problem]) -> Answer:
        """Take the better of the incumbent and the backend's mask of one coupled block."""
        mask, counts = band.run.start, Counts(products=1)
        program = block_program(band.problem)
        if not program.finite:
            return Answer(mask, status=Status.NOT_FINITE, counts=counts)
        if band.run.expired():
            return Answer(mask, status=Status.TIME_LIMIT, counts=counts)
        best = program.from_mask(mask)
        if not len(best):
            return Answer(mask, status=Status.OPTIMAL, counts=counts)
        seconds = None if band.run.deadline is None else band.run.deadline - time.monotonic()
        limits = Limits(seconds, band.run.max_iterations, band.run.seed)
        proof = _BACKENDS[self.backend](program, well_conditioned(program.quadratic), best, limits)
        found, counts.iterations = proof.z, proof.nodes
        if found is not None and program.excess(found) == 0 and program.value(found) < program.value(best):
            best = found
        return Answer(program.put(mask, best), status=_judged(program, proof, best), counts=counts)


def _improve(band: Band[Problem], group: int) -> Answer:
    """Search briefly from the start: a good incumbent prunes the tree from its root."""
    search = LocalSearch(band.problem, group, band.run.start, _COPIES, band.run.seed + band.number)
    for done in range(1, _ROUNDS + 1):
        if band.run.expired():
            break
        search.round()
        if done % CHECK_EVERY == 0:
            band.report(done, search.products)
    status = Status.OPTIMAL if search.finite else Status.NOT_FINITE  # whatever is left is the backend's to prove
    return Answer(search.result(), status=status, counts=Counts(products=search.products, swaps=search.swaps))


def _judged(program: BlockProgram, proof: Proof, best: Array) -> Status:
    """Accept OPTIMAL only if our own value of the mask meets the backend's bound."""
    value = program.value(best)
    agrees = bool(np.isfinite(proof.bound)) and value <= proof.bound + _AGREES * abs(value) + program.noise
    return Status.CONVERGED if proof.status is Status.OPTIMAL and not agrees else proof.status


def well_conditioned(quadratic: Array) -> Array:
    """Return d with Q − Diag(d) positive definite and Σ d nearly as large as possible: (n,) from (n, n) float64.

    Backends regularise a form that is singular, which would cost more than the margin.
    """
    gram = Gram(torch.from_numpy(quadratic), "the block's quadratic")
    diagonal = np.diagonal(quadratic)
    tightening: Array = largest_tightening(gram, torch.from_numpy(diagonal.copy())).numpy()
    return (tightening - _MARGIN) * diagonal
