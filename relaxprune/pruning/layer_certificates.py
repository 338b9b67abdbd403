"""Certificates of a pruning run's layers: which solver suits them, their making, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace

from relaxprune.certificates import MaskCertificate, certify
from relaxprune.certificates.sdp.row_bound import least_bytes
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import MaskProblem
from relaxprune.solvers import Solver
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES
from relaxprune.solvers.frank_wolfe.fw import FrankWolfe
from relaxprune.solving.solution import Solution

_ITERATIONS = 60  # beyond the solver's convex phase: where its bound still rises steeply
_SHARE = 0.8  # of the iterations of a short run, which its certificates shall not outlast


def solver_for(method: str | None, solver: Solver, given: Container[str] = ()) -> Solver:
    """Return the solver whose convex phase the certificates start from.

    Args:
        method: of the certificates, or None.
        solver: what was asked for.
        given: names of the options that the user named, which are never changed.
    """
    untold = isinstance(solver, FrankWolfe) and solver.tighten == "none" and "tighten" not in given
    if method in ("diagonal", "sdp") and untold:
        assert isinstance(solver, FrankWolfe)
        return replace(solver, tighten="diagonal")
    return solver


def certificate_of(problem: MaskProblem, solution: Solution, options: PruneOptions) -> MaskCertificate | None:
    """Return the certificate that was asked for, or None.

    A solver of the relaxation proves by itself what "fw" would prove; its certificate names the method.
    """
    if options.certify is None:
        return None
    own = solution.certificate
    if options.certify == "fw" and solution.relaxed_mask is not None and isinstance(own, MaskCertificate):
        return own
    return certify(
        problem,
        solution,
        options.certify,
        rows=options.rows_to_certify,
        max_iterations=_iterations(options),
        seed=options.seed,
        memory_budget_bytes=options.memory_budget_bytes or max(DEFAULT_MEMORY_BYTES, least_bytes(problem.shape[1])),
    )


def _iterations(options: PruneOptions) -> int:
    """Return the iterations that go into each certificate."""
    if options.max_iterations is None:
        return _ITERATIONS
    return min(_ITERATIONS, math.ceil(_SHARE * options.max_iterations))


def estimated_gap(certificate: MaskCertificate) -> float | None:
    """Return the relative gap of a certificate's estimate, None without one."""
    if certificate.estimate is None or not certificate.objective:
        return None
    return max(0.0, certificate.objective - certificate.estimate.lower_bound) / abs(certificate.objective)


def certificates_in_words(options: PruneOptions, solver: Solver) -> str:
    """Return one clause on the certificates of the layers, "" without any."""
    if options.certify is None:
        return ""
    rows = options.rows_to_certify
    extent = "every row" if rows is None else f"at most {rows} rows drawn per layer, the others by cheaper methods"
    phase = "; fw with tighten=diagonal" if isinstance(solver, FrankWolfe) and solver.tighten == "diagonal" else ""
    return f"{options.certify}, {extent}{phase}"
