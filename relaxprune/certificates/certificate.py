"""Certificates: recomputed from the problem and the mask, never a solver's own claim."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.problems.precision import UNIT_ROUNDOFF
from relaxprune.support.markup import piece

from .underestimator import METHODS, Bound, Proof, tangent_bound

if TYPE_CHECKING:
    from .verify.verification import Verification

_LAST_DIGITS = 1e-12


@dataclass(frozen=True)
class Estimate:
    """What the whole layer's bound would be if every row had been treated as the sampled ones. An estimate, no proof.

    Attributes:
        lower_bound: the extrapolated bound.
        low, high: a confidence interval for it.
        confidence: of that interval.
        rows: number of rows sampled.
    """

    lower_bound: float
    low: float
    high: float
    confidence: float
    rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificate:
    """A lower bound on the objective of every feasible mask, and what it proves of one mask.

    Attributes:
        method: how the bound was asked to be proven; rows may rest on a cheaper method that did better.
        objective: f(mask), float64.
        lower_bound: proven to be at most f of every feasible mask of the problem as given.
        block_objective, block_lower_bound: (blocks,) float64, per coupled block; the sums are the two numbers above.
        rows_covered: number of rows that the method asked for was applied to; the others rest on cheaper ones.
        checks: what was verified and allowed for: how convexity was proven, the shift and slacks subtracted, precision.
        relaxed_objective: the relaxation's value at the point where the tangents were taken.
        seconds: time to compute the bound.
        mask: (rows, cols) bool, the mask.
        proof: the numbers that the bound is rebuilt from.
        estimate: the extrapolation from sampled rows, or None.
    """

    method: str
    objective: float
    lower_bound: float
    block_objective: Tensor
    block_lower_bound: Tensor
    rows_covered: int
    checks: dict[str, Any] = field(default_factory=dict)
    relaxed_objective: float
    seconds: float
    mask: Tensor
    proof: Proof
    estimate: Estimate | None = None

    @property
    def gap(self) -> float:
        """``objective`` − ``lower_bound``, never below 0: rounding may put the two a last digit apart."""
        return max(0.0, self.objective - self.lower_bound)

    @property
    def relative_gap(self) -> float:
        """``gap`` / abs(``objective``); for a zero objective 0, or infinity where the problem may go below 0."""
        if not self.objective and self.gap > 0 and not self.checks.get("nonnegative", True):
            return math.inf
        return relative(self.gap, self.objective)

    def verify(self, problem: Problem, exact: bool = False) -> Verification:
        """Check everything again from the problem, by code that had no part in making it.

        Args:
            problem: the problem that the certificate is for.
            exact: compute in rationals; up to 64 rows and 24 columns.

        Raises:
            CertificateError: something does not hold.
        """
        from .verify.verification import verify

        return verify(problem, self, exact)

    def save(self, problem: Problem, path: str | Path) -> None:
        """Write a file that ``relaxprune.certificates.load_certificate`` and ``relaxprune verify`` read.

        Args:
            problem: the problem that the certificate is for, whose set of masks is stored along.
            path: the file to create or replace; it appears whole or not at all.
        """
        from .certificate_file import save_certificate

        save_certificate(self, problem.polytope, path)

    def _repr_html_(self) -> str:
        """Show the numbers as a small table, with the bound of every coupled block, in a notebook."""
        names = ("method", "objective", "lower_bound", "gap", "relative_gap", "seconds")
        rows = [(name.replace("_", " "), getattr(self, name)) for name in names]
        return piece("Certificate", rows, [("bound of each coupled block", self.block_lower_bound.tolist())])

    def __repr__(self) -> str:
        """Show the numbers, not the tensors."""
        return (
            f"Certificate(method={self.method!r}, objective={self.objective:.6g}, lower_bound={self.lower_bound:.6g}, "
            f"relative_gap={self.relative_gap:.3g})"
        )


def relative(gap: float, objective: float) -> float:
    """Return ``gap`` / abs(``objective``), 0 for a zero objective."""
    return gap / abs(objective) if objective else 0.0


def build(
    problem: Problem,
    mask: Tensor,
    point: Tensor,
    memory_bytes: int,
    tightening: Tensor | None = None,
    block_objective: Tensor | None = None,
) -> Certificate:
    """Return the certificate of a mask from tangents at ``point``: method fw, or diagonal with a tightening."""
    started = time.monotonic()
    if block_objective is None:
        block_objective = problem.block_objective(mask, memory_bytes)
    proof = Proof.plain(problem, point, tightening)
    bound = tangent_bound(problem, proof, memory_bytes)
    method = "fw" if tightening is None else "diagonal"
    return assemble(problem, mask, block_objective, replace(proof, scale=bound.scale), bound, method, started)


def assemble(
    problem: Problem, mask: Tensor, block_objective: Tensor, proof: Proof, bound: Bound, method: str, started: float
) -> Certificate:
    """Return the certificate of a mask with these objectives from a bound that was computed."""
    for name, values in (("objective", block_objective), ("bound", bound.block_lower_bound)):
        if not bool(torch.isfinite(values).all()):
            raise RelaxPruneError(f"the {name} of a coupled block is not finite in float64: scale the problem down")
    # Both are rounded: a bound may pass an optimal mask by that much, and any more would disprove the bound.
    excess = bound.block_lower_bound - block_objective
    if bool((excess > bound.row_rounding + _LAST_DIGITS * block_objective.abs()).any()):
        raise RuntimeError(
            f"the {method} bound of a coupled block exceeds the objective of a feasible mask by "
            f"{float(excess.amax()):.3g}: a bug, please report it"
        )
    row_bound = torch.minimum(bound.block_lower_bound, block_objective)
    psd = problem.proof
    return Certificate(
        method=method,
        objective=float(block_objective.sum()),
        lower_bound=total_below(row_bound),
        block_objective=block_objective,
        block_lower_bound=row_bound,
        rows_covered=problem.shape[0],
        checks={
            "precision": "float64",
            "psd": psd.psd,
            "psd_method": psd.method,
            "smallest_eigenvalue": psd.smallest_eigenvalue,
            "shift": psd.shift,
            "nonnegative": problem.nonnegative,
            "rounding_slack": float(bound.row_rounding.sum()),
            "convexity_slack": bound.convexity_slack,
            "rows_by_method": {name: int((proof.row_method == number).sum()) for number, name in enumerate(METHODS)},
        },
        relaxed_objective=float(bound.value.sum()),
        seconds=time.monotonic() - started,
        mask=mask,
        proof=proof,
    )


def total_below(row_bound: Tensor) -> float:
    """Sum bounds and give away what the sum may be rounded up."""
    return float(row_bound.sum()) - len(row_bound) * UNIT_ROUNDOFF * float(row_bound.abs().sum())
