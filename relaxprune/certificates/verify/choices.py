"""Verification of what is claimed of hybrid masks: bounds on rows as N:M, and the best choice of dense ones.

The objective is a sum over rows, and a row's part does not depend on the others. So with b_u at most what the rows of
tile u cost on any N:M mask, and d_u at most what they cost dense, every mask costs at least Σ b_u + min over the
choices C of Σ_{u in C} (d_u − b_u), which is found by sorting.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from relaxprune.problems import NM, Face, Problem

from .arrays import Array, below, floats, fractions
from .claim import ChoiceClaim
from .mask_set import MaskSet
from .masks import verify_masks
from .quadratics import Quadratics
from .totals import check_objectives
from .verified import CertificateError, Verification
from .wellformed import check_choice_claim


def verify_choice(problem: Problem, claim: ChoiceClaim, exact: bool) -> Verification:
    """Check a claim on hybrid masks; see ``verify``."""
    masks = MaskSet.of(problem.polytope, problem.shape)
    if masks.kind != "hybrid":
        raise CertificateError(f"the certificate is for a hybrid set, this problem has {problem.polytope!r}")
    check_choice_claim(problem, claim)
    seen = verify_masks(_apart(problem, masks), claim.apart, exact)
    rough = Quadratics.of(problem)
    objective = _objective(claim, rough, exact)
    bounds = fractions(floats(claim.apart.block_lower_bound))  # proven, row by row
    bound = masks.least_chosen(bounds, fractions(_dense(rough)))
    for name, value in (("lower_bound", claim.lower_bound), ("its block's bound", float(claim.block_lower_bound[0]))):
        if not value <= bound:
            raise CertificateError(f"{name} is {value!r}, but the rows' bounds give {float(bound)!r} at most")
    if claim.lower_bound > claim.objective or bool((claim.block_lower_bound > claim.block_objective).any()):
        raise CertificateError(f"lower_bound is {claim.lower_bound!r}, above what the certificate's own mask has")
    return replace(
        seen, method=claim.method, objective=objective, claimed_bound=claim.lower_bound, lower_bound=below(bound)
    )


def _apart(problem: Problem, masks: MaskSet) -> Problem:
    """Return the problem in which no row is dense; rows that must be are free in it, and their bounds are not used."""
    base = NM(masks.keep, masks.width)
    kept, pruned = problem.polytope.fixed()
    if kept is not None:
        kept = kept & ~torch.from_numpy(masks.only_dense()).to(kept.device).unsqueeze(1)
    return problem.over(base if kept is None and pruned is None else Face(base, kept, pruned))


def _objective(claim: ChoiceClaim, rough: Quadratics, exact: bool) -> float:
    """Check the mask and its objective; return that."""
    mask: Array = _bits(claim.mask)
    if not rough.masks.feasible(mask):
        raise CertificateError(f"mask is not in the hybrid set: it keeps {int(mask.sum())} entries")
    entries = mask.astype(np.float64)
    value = rough.rational().value(fractions(entries)) if exact else rough.value(entries)
    found, size = (rough.masks.block_sum(part) for part in (value, rough.size(entries)))
    return check_objectives(claim, found, size, lambda block: "the layer")


def _dense(rough: Quadratics) -> Array:
    """Return at most what every row costs dense, (rows,) float64: 0 for a layer, whose output stays as it is."""
    entries = np.ones(rough.factor.shape)
    if rough.offset:
        return np.zeros(len(entries))
    lost: Array = rough.allowance(entries, 0 * entries) + rough.lost()
    return rough.value(entries) - lost


def _bits(mask: Tensor) -> Array:
    """Return a mask as numpy's bool."""
    found: Array = mask.cpu().numpy().astype(bool)
    return found
