"""Certificates of hybrid masks: a bound from bounds on rows as N:M, and the best choice of dense rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems import Polytope, Problem
from relaxprune.problems.precision import UNIT_ROUNDOFF

from .certificate import Certificate
from .mask_certificate import MaskCertificate
from .verify.claim import ChoiceClaim, MaskClaim


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ChoiceCertificate(MaskCertificate):
    """A lower bound on the objective of every mask of a hybrid set, and the gap of one.

    A row's part of the objective does not depend on the other rows, so the bounds of all rows as N:M, and what they
    cost dense, give the bound of the best choice of dense tiles by sorting. The numbers of the proof, such as
    ``proof`` and ``checks``, are those of ``apart``.

    Attributes:
        apart: the certificate of the set in which no row is dense.
    """

    apart: MaskCertificate

    @property
    def claim(self) -> ChoiceClaim:
        """What ``verify`` checks, as a plain value."""
        apart = self.apart.claim
        assert isinstance(apart, MaskClaim)  # rows apart have no choice between them
        return ChoiceClaim(
            method=self.method,
            objective=self.objective,
            lower_bound=self.lower_bound,
            block_objective=self.block_objective,
            block_lower_bound=self.block_lower_bound,
            subject=self.subject,
            mask=self.mask,
            apart=apart,
        )

    @property
    def notes(self) -> dict[str, Any]:
        """What a file stores in addition to the claim: the numbers of the rows' certificate, and the time."""
        rows = self.apart
        numbers = {"method": rows.method, "objective": rows.objective, "lower_bound": rows.lower_bound}
        return {"seconds": self.seconds, "apart": {**numbers, **rows.notes}}


def dense_values(problem: Problem) -> Tensor:
    """Return at most what every row costs if it is dense: (rows,) float64, 0 for a layer, whose output stays."""
    ones = torch.ones(1, 1, dtype=torch.float64, device=problem.device).expand(problem.shape)
    if problem.nonnegative:
        return ones[:, 0].new_zeros(problem.shape[0])
    value = problem.row_value(ones, problem.half_gradient(ones))
    return value - problem.rounding(ones)


def rows_apart(
    problem: Problem, over: Polytope, mask: Tensor, memory_bytes: int, known: Certificate | None = None
) -> Tensor:
    """Return a mask of ``over`` (rows, cols) that is ``mask`` in all rows but the dense ones.

    Args:
        problem: the problem over a set that leaves rows dense.
        over: its ``chosen_from()``.
        mask: (rows, cols) bool, feasible.
        memory_bytes: bound on temporaries.
        known: a certificate of the mask, which has such rows if it is of this kind.
    """
    if isinstance(known, ChoiceCertificate):
        return known.apart.mask
    score = problem.over(over).round_parts(lambda part: problem.score(problem.default_start, rows=part), memory_bytes)
    return torch.where(mask.all(dim=1, keepdim=True), score, mask)


def choice_certificate(problem: Problem, mask: Tensor, apart: MaskCertificate, memory_bytes: int) -> ChoiceCertificate:
    """Return the certificate of a hybrid mask.

    Args:
        problem: the problem over a hybrid set.
        mask: (rows, cols) bool, feasible.
        apart: a certificate of the problem over ``chosen_from()``, with a bound for every row.
        memory_bytes: bound on temporaries.
    """
    started = time.monotonic()
    objective = problem.block_objective(mask, memory_bytes)
    bounds, dense = apart.block_lower_bound, dense_values(problem)
    chosen = problem.polytope.choice(bounds - dense)
    terms = torch.where(chosen, dense, bounds)
    # Tiles whose sums differ by rounding alone may have been confused, and the sum is rounded, too.
    slack = 4 * (len(terms) + 8) * UNIT_ROUNDOFF * (bounds.abs().sum() + dense.abs().sum())
    bound = torch.minimum((terms.sum() - slack).view(1), objective)
    if problem.nonnegative and problem.proof.psd:
        bound = bound.clamp(min=0.0)
    return ChoiceCertificate(
        method=apart.method,
        objective=float(objective.sum()),
        lower_bound=float(bound.sum()),
        block_objective=objective,
        block_lower_bound=bound,
        seconds=apart.seconds + time.monotonic() - started,
        rows_covered=apart.rows_covered,
        checks=apart.checks,
        relaxed_objective=apart.relaxed_objective,
        mask=mask,
        proof=apart.proof,
        apart=apart,
    )
