"""The convex relaxation by an external solver: the reference for the Frank-Wolfe methods."""

from __future__ import annotations

import logging
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.problems.checks import one_of

from ..base import BUDGETS, Answer, Counts, Run, Solver, Status
from ..driver import Band, Driver
from .engine.programs import Array, BlockProgram, block_program, refuse_more_free_than, require

_logger = logging.getLogger("relaxprune")

_FREE_LIMIT = 2048
_FEASIBLE = 1e-6
_FLAT = 1e-9  # eigenvalues of this size, relative to the largest, are rounding
_MOST = 0.9  # of its seconds: a backend that stopped at a limit after that stopped for time
_CLOSED = 1e-4  # relative gap at the point beyond which an answer is not called converged, whatever its backend says


@dataclass(frozen=True)
class _Budgets:
    """A backend's names for its budgets; None if it has no such setting."""

    iterations: str | None
    seconds: str | None


_BACKENDS = {
    "CLARABEL": _Budgets("max_iter", "time_limit"),
    "PIQP": _Budgets("max_iter", None),
    "HIGHS": _Budgets(None, "time_limit"),
    "QOCO": _Budgets("max_iters", None),
    "SCS": _Budgets("max_iters", "time_limit_secs"),
    "OSQP": _Budgets("max_iter", "time_limit"),
}


@dataclass(frozen=True)
class Relaxation(Solver):
    """Minimise the objective over the polytope itself through cvxpy (Diamond and Boyd, JMLR 17, 2016).

    One quadratic program per coupled block, of order one, solved by Clarabel (Goulart and Chen, arXiv 2405.12762) by
    default; never by cvxpy's default, which was 95 % off on a rank-deficient Gram. A status word is not trusted:
    feasibility, objective and Frank-Wolfe gap are computed again from the point, and an answer that fails is not called
    converged. A quadratic with eigenvalues below 0 (float noise) is solved with those set to 0.

    ``max_iterations`` and the time limit apply to the backend, per coupled block; ``gap_tolerance`` (1e-4) is the
    relative gap up to which an answer counts as converged.

    Args:
        backend: ``"CLARABEL"``, or ``"PIQP"``, ``"HIGHS"``, ``"QOCO"``, ``"SCS"``, ``"OSQP"`` if installed.
    """

    backend: str = "CLARABEL"

    name: ClassVar[str] = "cvxpy"
    summary: ClassVar[str] = "the convex relaxation by Clarabel (cvxpy), up to 2048 free entries a row"
    honours: ClassVar[frozenset[str]] = frozenset(BUDGETS)
    only_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        one_of("backend", self.backend, _BACKENDS)

    def check(self, problem: Problem) -> None:
        """Refuse blocks of more than 2048 free entries, and a backend that is not installed."""
        refuse_more_free_than(_FREE_LIMIT, self.name, problem)
        installed = require("cvxpy", self.name).installed_solvers()
        if self.backend not in installed:
            raise RelaxPruneError(
                f"backend {self.backend} is not installed for cvxpy; installed are "
                f"{', '.join(name for name in _BACKENDS if name in installed)}"
            )

    def budgets(self) -> frozenset[str]:
        """Return the budgets in use: some backends have no limit of iterations."""
        return self.honours - (set() if _BACKENDS[self.backend].iterations else {"max_iterations"})

    def distributions(self) -> tuple[str, ...]:
        """Return cvxpy and the backend's package."""
        return ("cvxpy", "highspy" if self.backend == "HIGHS" else self.backend.lower())

    def run(self, problem: Problem, run: Run) -> Answer:
        """Solve one coupled block after the other; one without an answer keeps its start."""
        return Driver(self.name, run, problem.split(1, 0)).sweep(self._solve)

    def _solve(self, band: Band[Problem]) -> Answer:
        """Solve one coupled block."""
        point = band.run.start.to(torch.float64)
        if band.run.expired():
            return Answer(point, point, Status.TIME_LIMIT)
        program, counts = block_program(band.problem), Counts(products=1)
        if not program.finite:
            return Answer(point, status=Status.NOT_FINITE, counts=counts)
        settings, began = self._settings(band.run), time.monotonic()
        z, word, counts.iterations = _minimise(program, self.backend, settings) if len(program.linear) else _NOTHING
        allowed = settings.get(_BACKENDS[self.backend].seconds or "", math.inf)
        status = _status(word, band.run.expired() or time.monotonic() - began >= _MOST * allowed)
        if z is not None:
            point = program.put(point, z)
            closed = _CLOSED if band.run.gap_tolerance is None else band.run.gap_tolerance
            if status is Status.CONVERGED and _relative_gap(band.problem, program, z, point) > closed:
                status = Status.ITERATION_LIMIT
        return Answer(point, None if status.failed else point, status, counts)

    def _settings(self, run: Run) -> dict[str, float]:
        """Return the budgets of one block in the backend's words."""
        names = _BACKENDS[self.backend]
        settings: dict[str, float] = {}
        if run.deadline is not None and names.seconds is not None:
            settings[names.seconds] = max(1e-3, run.deadline - time.monotonic())
        if run.max_iterations is not None and names.iterations is not None:
            settings[names.iterations] = run.max_iterations
        return settings


_NOTHING: tuple[Array | None, str, int] = (None, "optimal", 0)  # every entry is fixed


def _minimise(program: BlockProgram, backend: str, settings: dict[str, float]) -> tuple[Array | None, str, int]:
    """Return z in the box and feasible, or None; cvxpy's status word; and the backend's iterations."""
    cvxpy: Any = require("cvxpy", "cvxpy")
    z = cvxpy.Variable(len(program.linear))
    total = program.member @ z
    counts = total >= program.pruned if program.at_most else total == program.pruned
    cost = cvxpy.quad_form(z, cvxpy.psd_wrap(_convex(program.quadratic))) + program.linear @ z
    problem = cvxpy.Problem(cvxpy.Minimize(cost), [z >= 0, z <= 1, counts])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "may be inaccurate": measured below
            problem.solve(solver=backend, **settings)
    except cvxpy.SolverError as error:
        _logger.warning("cvxpy with %s failed: %s", backend, error)
        return None, "solver_error", 0
    iterations = problem.solver_stats.num_iters if problem.solver_stats is not None else None
    spent = int(iterations) if iterations is not None else 0
    if z.value is None or not np.isfinite(z.value).all():
        return None, problem.status, spent
    point = np.clip(np.asarray(z.value, dtype=np.float64), 0.0, 1.0)
    if program.excess(point) > _FEASIBLE:
        _logger.warning("cvxpy with %s returned a point that violates a count by %.2g", backend, program.excess(point))
        return None, "user_limit", spent  # whatever it says: it stopped short
    return point, problem.status, spent


def _convex(quadratic: Array) -> Array:
    """Return the quadratic, with its negative eigenvalues set to 0 if they exceed rounding."""
    values, vectors = np.linalg.eigh(quadratic)
    if values[0] >= -_FLAT * max(values[-1], 0.0):
        return quadratic
    return np.asarray((vectors * np.clip(values, 0, None)) @ vectors.T, dtype=np.float64)


def _status(word: str, out_of_time: bool) -> Status:
    """Map cvxpy's status words; a bounded, feasible problem called infeasible or unbounded is a breakdown."""
    if word in ("optimal", "optimal_inaccurate"):
        return Status.CONVERGED  # only if our own gap agrees
    if word == "user_limit":
        return Status.TIME_LIMIT if out_of_time else Status.ITERATION_LIMIT
    if word not in (
        "solver_error",
        "infeasible",
        "infeasible_inaccurate",
        "unbounded",
        "unbounded_inaccurate",
        "infeasible_or_unbounded",
    ):
        _logger.warning("cvxpy returned the status %r, which relaxprune does not know", word)
    return Status.BACKEND_FAILED


def _relative_gap(piece: Problem, program: BlockProgram, z: Array, point: torch.Tensor) -> float:
    """Return our own Frank-Wolfe gap at ``z``, of the true quadratic, relative to its objective."""
    gradient = torch.zeros(point.numel(), dtype=torch.float64)
    gradient[program.free] = torch.from_numpy(-program.gradient(z))  # in m = 1 − z
    gradient = gradient.view(point.shape).to(point.device)
    gap = float((gradient * (point - piece.polytope.lmo(gradient))).sum())
    value = abs(program.value(z))
    return math.inf if math.isnan(gap) else max(0.0, gap) / max(value, program.noise * 1e6, 1e-300)
