"""Weights that are zero in a sparse source, and keeping them so where weights get new values.

A dense layer has a few exact zeros by chance, which mean nothing. A layer of which more than a tenth is exactly zero
was pruned before: new values for its zeros would undo that, and nobody would see it from the counts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from relaxprune.certificates.weight_certificate import certify_weights
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import ReconstructionProblem
from relaxprune.problems.polytopes import Face, Polytope
from relaxprune.solving.refitting import fit
from relaxprune.solving.solution import Solution

_SPARSE = 0.1  # a layer with a larger share of exact zeros counts as pruned


def source_zeros(weight: Tensor) -> Tensor | None:
    """Return where a sparse layer is zero, (rows, cols) bool; None for a layer that counts as dense."""
    zeros = weight == 0
    return zeros if int(zeros.sum()) > _SPARSE * zeros.numel() else None


def staying_zeros(weight: Tensor, options: PruneOptions) -> Tensor | None:
    """Return which zeros of a layer stay zero where a run gives weights new values, (rows, cols) bool; None for none.

    Args:
        weight: (rows, cols), not pruned yet.
        options: of the run.
    """
    return source_zeros(weight) if options.new_values and not options.regrow else None


def pruning_zeros(polytope: Polytope, weight: Tensor, zeros: Tensor) -> Face:
    """Return the masks of a set that prune zeros before anything else.

    Where a count leaves room for all of the zeros they are pruned; where there are more of them, only zeros are.

    Args:
        polytope: the set of masks.
        weight: (rows, cols).
        zeros: (rows, cols) bool, where it is zero.
    """
    if polytope.chosen_from() is not None:
        return Face(polytope)  # a dense row keeps its zeros, so none is pruned in all masks
    sizes = weight.detach().abs().to(torch.float64)
    first = polytope.round(torch.where(zeros, 0.0, 1.0 + sizes / sizes.max().clamp(min=1e-300)))
    return Face(polytope, None, zeros & ~first)


def keep_zeros(
    problem: ReconstructionProblem, solution: Solution, face: Face, zeros: Tensor, memory_bytes: int
) -> Solution:
    """Return a solution with a mask of ``face`` whose weights are zero where the source is, refitted where need be.

    Args:
        problem: what was solved.
        solution: of it, with weights.
        face: the masks that prune zeros first.
        zeros: (rows, cols) bool, where the source is zero.
        memory_bytes: bound on temporaries.
    """
    assert solution.weight is not None  # weights move
    mask = solution.mask if face.contains(solution.mask) else face.round(solution.mask.to(torch.float64))
    if mask is solution.mask and not bool((solution.weight[zeros] != 0).any()):
        return solution
    fitted = fit(problem, mask & ~zeros, memory_bytes)
    certificate = certify_weights(problem, fitted.weight, memory_budget_bytes=memory_bytes)
    return replace(
        solution,
        mask=mask,
        weight=fitted.weight,
        objective=fitted.objective,
        relative_error=fitted.relative_error,
        kept_objective=fitted.kept_objective,
        block_objective=certificate.block_objective,
        certificate=certificate,
    )
