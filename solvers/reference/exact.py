"""The binary problem itself, to a proof: mixed-integer solvers on small coupled blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from relaxprune.problems import Gram, Problem, RelaxPruneError
from relaxprune.problems.tightening import largest_tightening

from ..base import Answer, Progress, Run, Solver, Status, worse
from ..exchange.engine.local_search import MATRICES, LocalSearch, loosened, separates
from .engine.exact_backends import Limits, Proof, solve_with_daqp, solve_with_scip
from .engine.programs import Array, BlockProgram, block_programs, refuse_more_free_than, require

_FREE_LIMIT = 64
_BACKENDS = {"scip": solve_with_scip, "daqp": solve_with_daqp}
_MODULES = {"scip": "pyscipopt", "daqp": "daqp"}
_AGREES = 1e-6  # relative, between a backend's bound and our own evaluation of its mask
_ROUNDS, _COPIES = 150, 8
_MARGIN = 1e-5  # in correlation scaling


@dataclass(frozen=True)
class Exact(Solver):
    """Prove the best mask of each coupled block of at most 64 free entries by branch and bound.

    The objective is handed over in its tightened form zᵀ(Q − Diag(d))z + d·z, equal on masks and larger between them
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
        if self.backend not in _BACKENDS:
            raise RelaxPruneError(f'backend must be "scip" or "daqp", got {self.backend!r}')

    def check(self, problem: Problem) -> None:
        """Refuse blocks of more than 64 free entries, and a backend that is not installed."""
        refuse_more_free_than(_FREE_LIMIT, self.name, problem)
        require(_MODULES[self.backend], self.name)

    def budgets(self) -> frozenset[str]:
        """DAQP takes a time limit only."""
        return self.honours - ({"max_iterations"} if self.backend == "daqp" else set())

    def distributions(self) -> tuple[str, ...]:
        """Return the backend's package, which is named like its module."""
        return (_MODULES[self.backend],)

    def run(self, problem: Problem, run: Run) -> Answer:
        """Prove block by block, sharing the time that is left evenly."""
        started = time.monotonic()
        answer = Answer(run.start.clone(), status=Status.OPTIMAL)
        self._improve(problem, run, answer)
        blocks = problem.polytope.block_count(problem.shape)
        for number, (part, _, program) in enumerate(block_programs(problem)):
            answer.counts.products += (part.stop - part.start) / problem.shape[0]
            if not program.finite:
                return Answer(run.start.clone(), status=Status.NOT_FINITE, counts=answer.counts)
            seconds = None if run.deadline is None else (run.deadline - time.monotonic()) / (blocks - number)
            limits = Limits(seconds, run.max_iterations, run.seed)
            mask, status, nodes = self._prove(program, answer.point[part], limits)
            answer.point[part] = mask
            answer.status = worse(answer.status, status)
            answer.counts.iterations = max(answer.counts.iterations, nodes)
            if run.callback is not None:
                elapsed = time.monotonic() - started
                run.callback(Progress(self.name, number, blocks, nodes, 0, int(status is not Status.OPTIMAL), elapsed))
        return answer

    def _improve(self, problem: Problem, run: Run, answer: Answer) -> None:
        """Search a little from the start: a good incumbent prunes the tree from its root."""
        if not separates(problem):
            return
        group = problem.polytope.group_size(problem.shape)
        for number, (part, piece) in enumerate(loosened(problem).split(MATRICES * _COPIES, run.memory_bytes)):
            search = LocalSearch(piece, group, run.start[part], _COPIES, run.seed + number)
            for _ in range(_ROUNDS):
                if run.expired():
                    break
                search.round()
            answer.point[part] = search.result()
            answer.counts.swaps += search.swaps
            answer.counts.products += search.products * (part.stop - part.start) / problem.shape[0]

    def _prove(self, program: BlockProgram, mask: Tensor, limits: Limits) -> tuple[Tensor, Status, int]:
        """Return the better of the incumbent and the backend's mask, how it ended, and the nodes."""
        incumbent = program.from_mask(mask)
        if limits.seconds is not None and limits.seconds <= 0:
            return mask, Status.TIME_LIMIT, 0
        if not len(incumbent):
            return mask, Status.OPTIMAL, 0
        proof = _BACKENDS[self.backend](program, well_conditioned(program.quadratic), incumbent, limits)
        best = incumbent
        found = proof.z
        if found is not None and program.excess(found) == 0 and program.value(found) < program.value(best):
            best = found
        return program.put(mask, best), _judged(program, proof, best), proof.nodes


def _judged(program: BlockProgram, proof: Proof, best: Array) -> Status:
    """Believe OPTIMAL only where our own value of the mask meets the backend's bound."""
    value = program.value(best)
    agrees = bool(np.isfinite(proof.bound)) and value <= proof.bound + _AGREES * abs(value) + program.noise
    return Status.CONVERGED if proof.status is Status.OPTIMAL and not agrees else proof.status


def well_conditioned(quadratic: Array) -> Array:
    """Return d with Q − Diag(d) positive definite and Σ d nearly as large as can be: (n,) from (n, n) float64.

    Backends regularise a form that is singular, which would cost more than the margin.
    """
    gram = Gram(torch.from_numpy(quadratic), "the block's quadratic")
    diagonal = np.diagonal(quadratic)
    tightening: Array = largest_tightening(gram, torch.from_numpy(diagonal.copy())).numpy()
    return (tightening - _MARGIN) * diagonal
