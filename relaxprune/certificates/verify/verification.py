"""Verify a certificate from the problem alone, in numpy, with code independent of the code that made it."""

from __future__ import annotations

import numpy as np

from relaxprune.problems import BaseProblem, Problem, ReconstructionProblem, RelaxPruneError

from .choices import verify_choice
from .claim import ChoiceClaim, Claim, MaskClaim, WeightClaim
from .masks import verify_masks
from .verified import CertificateError, Verification
from .weights import verify_weights

_MOST_EXACT = (64, 24)  # rows, columns


def verify(problem: BaseProblem, claim: Claim, exact: bool = False) -> Verification:
    """Check what a certificate claims against a problem.

    Args:
        problem: the problem, with the polytope that the certificate is for.
        claim: the claim.
        exact: compute in rationals; up to 64 rows and 24 columns. In float64 what may be rounding is taken off.

    Raises:
        CertificateError: something that the certificate says does not hold.
        RelaxPruneError: a problem of another kind or with an unknown set, or too large for ``exact``.
    """
    of_weights = isinstance(claim, WeightClaim)
    if not isinstance(problem, ReconstructionProblem if of_weights else Problem):
        wanted = "a ReconstructionProblem" if of_weights else "a mask or quadratic problem"
        raise RelaxPruneError(f"problem must be {wanted} for this certificate, got {type(problem).__name__}")
    rows, cols = problem.shape
    if exact and (rows > _MOST_EXACT[0] or cols > _MOST_EXACT[1]):
        raise RelaxPruneError(
            f"exact verification takes up to {_MOST_EXACT[0]} rows and {_MOST_EXACT[1]} columns, got {rows} x {cols}"
        )
    if claim.subject is not None:
        claim.subject.check(problem)
    try:
        with np.errstate(all="ignore"):  # what overflows becomes infinite or NaN, and reaches no bound
            if isinstance(claim, MaskClaim) and isinstance(problem, Problem):
                return verify_masks(problem, claim, exact)
            if isinstance(claim, ChoiceClaim) and isinstance(problem, Problem):
                return verify_choice(problem, claim, exact)
            assert isinstance(claim, WeightClaim) and isinstance(problem, ReconstructionProblem)  # by what was refused
            return verify_weights(problem, claim, exact)
    except (OverflowError, ZeroDivisionError, np.linalg.LinAlgError) as error:
        raise CertificateError(f"the certificate holds numbers that float64 cannot compute with: {error}") from error
