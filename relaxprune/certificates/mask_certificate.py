"""Certificates of masks: a bound for every mask of a set."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.problems.precision import UNIT_ROUNDOFF

from .certificate import Certificate
from .combining import Candidate
from .underestimator import plain_proof, tangent_bound
from .verify.claim import METHODS, ChoiceClaim, MaskClaim, TangentProof

_LAST_DIGITS = 1e-12


@dataclass(frozen=True)
class Estimate:
    """What the layer's bound would be if every row were treated like the sampled ones: an estimate, not a proof.

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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MaskCertificate(Certificate):
    """A lower bound on the objective of every feasible mask, and the gap of one mask.

    Attributes:
        method: the method that was asked for; rows may use a cheaper method that did better.
        rows_covered: number of rows that this method was applied to; the others use cheaper ones.
        checks: how convexity was proven, the shift and slacks that were subtracted, the precision.
        relaxed_objective: the relaxation's value at the point of tangency.
        mask: (rows, cols) bool, the mask.
        proof: the numbers that the bound is rebuilt from.
        estimate: the extrapolation from sampled rows, or None.
    """

    rows_covered: int
    checks: dict[str, Any] = field(default_factory=dict)
    relaxed_objective: float
    mask: Tensor
    proof: TangentProof
    estimate: Estimate | None = None

    @property
    def nonnegative(self) -> bool:
        """Whether no mask has an objective below 0, up to rounding."""
        return bool(self.checks.get("nonnegative", True))

    @property
    def claim(self) -> MaskClaim | ChoiceClaim:
        """What ``verify`` checks, as a plain value."""
        return MaskClaim(
            method=self.method,
            objective=self.objective,
            lower_bound=self.lower_bound,
            block_objective=self.block_objective,
            block_lower_bound=self.block_lower_bound,
            subject=self.subject,
            mask=self.mask,
            proof=self.proof,
            shift=self.checks["shift"],
            rows_covered=self.rows_covered,
        )

    @property
    def notes(self) -> dict[str, Any]:
        """What a file stores in addition to the claim; the proof depends only on the shift in ``checks``."""
        return {
            "seconds": self.seconds,
            "rows_covered": self.rows_covered,
            "checks": self.checks,
            "relaxed_objective": self.relaxed_objective,
            "estimate": None if self.estimate is None else asdict(self.estimate),
        }


def build(
    problem: Problem,
    mask: Tensor,
    point: Tensor,
    memory_bytes: int,
    tightening: Tensor | None = None,
    block_objective: Tensor | None = None,
) -> MaskCertificate:
    """Return the certificate of a mask from tangents at ``point``: method fw, or diagonal with a tightening."""
    started = time.monotonic()
    if block_objective is None:
        block_objective = problem.block_objective(mask, memory_bytes)
    proof = plain_proof(problem, point, tightening)
    bound = tangent_bound(problem, proof, memory_bytes)
    method = "fw" if tightening is None else "diagonal"
    found = (replace(proof, scale=bound.scale), bound)
    return assemble(problem, mask, block_objective, found, method=method, started=started)


def assemble(
    problem: Problem,
    mask: Tensor,
    block_objective: Tensor,
    found: Candidate,
    *,
    method: str,
    started: float,
) -> MaskCertificate:
    """Return the certificate of a mask with these objectives from a bound that was found."""
    proof, bound = found
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
    return MaskCertificate(
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
    """Sum bounds, less the most that rounding can add."""
    return float(row_bound.sum()) - len(row_bound) * UNIT_ROUNDOFF * float(row_bound.abs().sum())
