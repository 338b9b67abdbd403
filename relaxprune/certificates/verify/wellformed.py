"""The form of a claim, checked before its numbers: shapes, dtypes, and only finite numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relaxprune.problems import Problem, ReconstructionProblem

from .claim import METHODS, PERSPECTIVE, WEIGHT_METHODS, Claim, MaskClaim, WeightClaim
from .verified import CertificateError

_WHOLE = ("row_method", "dense_rows", "cut_row", "cut_index", "cut_sign")


def check_mask_claim(problem: Problem, claim: MaskClaim) -> None:
    """Refuse tensors of the wrong shape or dtype, and numbers that are not finite.

    Raises:
        CertificateError: naming the first.
    """
    rows, cols = problem.shape
    proof, blocks = claim.proof, problem.polytope.block_count(problem.shape)
    dense, cuts = len(proof.dense_rows), len(proof.cut_row)
    shapes = {
        "mask": (claim.mask, (rows, cols)),
        "block_objective": (claim.block_objective, (blocks,)),
        "block_lower_bound": (claim.block_lower_bound, (blocks,)),
        "point": (proof.point, (rows, cols)),
        "scale": (proof.scale, (blocks,)),
        "row_method": (proof.row_method, (rows,)),
        "dense_rows": (proof.dense_rows, (dense,)),
        "cut_row": (proof.cut_row, (cuts,)),
        "dense_diagonal": (proof.dense_diagonal, (dense, cols)),
        "dense_weight": (proof.dense_weight, (dense,)),
        "cut_index": (proof.cut_index, (cuts, 3)),
        "cut_sign": (proof.cut_sign, (cuts, 3)),
        "cut_multiplier": (proof.cut_multiplier, (cuts,)),
    }
    if proof.tightening is not None:
        shapes["tightening"] = (proof.tightening, (cols,))
    for name, (tensor, shape) in shapes.items():
        _check_tensor(name, tensor, shape, whole=name in _WHOLE)
    _check_totals(claim)
    _check_indices(problem, claim)
    if isinstance(claim.shift, bool) or not isinstance(claim.shift, (int, float)) or not 0 <= claim.shift < math.inf:
        raise CertificateError(f"checks['shift'] must be a number of at least 0, got {claim.shift!r}")


def check_weight_claim(problem: ReconstructionProblem, claim: WeightClaim) -> None:
    """Refuse the same in a claim on weights.

    Raises:
        CertificateError: naming the first.
    """
    rows, cols = problem.shape
    blocks = problem.polytope.block_count(problem.shape)
    if claim.method not in WEIGHT_METHODS:
        raise CertificateError(f"method is {claim.method!r}; known are {', '.join(WEIGHT_METHODS)}")
    if not claim.weight.is_floating_point():
        raise CertificateError(f"weight must hold floats, got {claim.weight.dtype}")
    _check_tensor("weight", claim.weight, (rows, cols))
    _check_tensor("block_objective", claim.block_objective, (blocks,))
    _check_tensor("block_lower_bound", claim.block_lower_bound, (blocks,))
    for name, tensor, shape in (("point", claim.point, (rows, cols)), ("tightening", claim.tightening, (cols,))):
        if (tensor is not None) != (claim.method == PERSPECTIVE):
            raise CertificateError(f"{name} belongs to method {PERSPECTIVE!r} and to no other, got {claim.method!r}")
        if tensor is not None:
            _check_tensor(name, tensor, shape)
    _check_totals(claim)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], *, whole: bool = False) -> None:
    """Refuse a tensor of another shape, with NaN or Inf, or not of whole numbers if it must be."""
    if tuple(tensor.shape) != shape:
        raise CertificateError(f"{name} has shape {tuple(tensor.shape)}, but this problem needs {shape}")
    if tensor.is_complex() or not bool(tensor.isfinite().all()):
        raise CertificateError(f"{name} holds NaN or Inf")
    if whole and (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise CertificateError(f"{name} must hold whole numbers, got {tensor.dtype}")


def _check_totals(claim: Claim) -> None:
    """Refuse totals that are not finite."""
    if not math.isfinite(claim.objective) or not math.isfinite(claim.lower_bound):
        raise CertificateError(f"objective is {claim.objective!r} and lower_bound {claim.lower_bound!r}")


def _check_indices(problem: Problem, claim: MaskClaim) -> None:
    """Refuse indices out of range, and a method cheaper than that of a row."""
    rows, proof = problem.shape[0], claim.proof
    for name, index in (("dense_rows", proof.dense_rows), ("cut_row", proof.cut_row)):
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < rows:
            raise CertificateError(f"{name} names a row that does not exist: this problem has {rows}")
    known = claim.method in METHODS and int(proof.row_method.max()) <= METHODS.index(claim.method)
    if not known or not 0 <= claim.rows_covered <= rows:
        raise CertificateError(
            f"method is {claim.method!r} over {claim.rows_covered} rows, which the rows' own methods and "
            f"their number, {rows}, do not allow"
        )
