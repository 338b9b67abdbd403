"""The form of a claim, checked before its numbers: shapes, dtypes, and only finite numbers."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from relaxprune.problems import Problem, ReconstructionProblem
from relaxprune.problems.checks import described

from .claim import METHODS, PERSPECTIVE, WEIGHT_METHODS, ChoiceClaim, Claim, MaskClaim, WeightClaim
from .verified import CertificateError

_WIDE = (torch.float64,)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_BITS = (torch.bool,)
_Shapes = dict[str, tuple[object, tuple[int, ...], tuple[torch.dtype, ...]]]


def check_mask_claim(problem: Problem, claim: MaskClaim) -> None:
    """Refuse tensors of the wrong shape or dtype, and numbers that are not finite.

    Raises:
        CertificateError: naming the first.
    """
    rows, cols = problem.shape
    proof, blocks = claim.proof, problem.polytope.block_count(problem.shape)
    dense, cuts = _length("dense_rows", proof.dense_rows), _length("cut_row", proof.cut_row)
    shapes: _Shapes = {
        "mask": (claim.mask, (rows, cols), _BITS),
        **_blocks(claim, blocks),
        "point": (proof.point, (rows, cols), (*_FLOATS, torch.bool, torch.uint8)),
        "scale": (proof.scale, (blocks,), _WIDE),
        "row_method": (proof.row_method, (rows,), _WHOLE),
        "dense_rows": (proof.dense_rows, (dense,), _WHOLE),
        "cut_row": (proof.cut_row, (cuts,), _WHOLE),
        "dense_diagonal": (proof.dense_diagonal, (dense, cols), _WIDE),
        "dense_weight": (proof.dense_weight, (dense,), _WIDE),
        "cut_index": (proof.cut_index, (cuts, 3), _WHOLE),
        "cut_sign": (proof.cut_sign, (cuts, 3), _WHOLE),
        "cut_multiplier": (proof.cut_multiplier, (cuts,), _WIDE),
    }
    if proof.tightening is not None:
        shapes["tightening"] = (proof.tightening, (cols,), _WIDE)
    _check(claim, shapes, METHODS)
    _check_number("checks['shift']", claim.shift)
    if claim.shift < 0:
        raise CertificateError(f"checks['shift'] must be a number of at least 0, got {claim.shift!r}")
    _check_indices(problem, claim)


def check_choice_claim(problem: Problem, claim: ChoiceClaim) -> None:
    """Refuse the same in a claim on hybrid masks; what it says of rows is checked as a claim of its own.

    Raises:
        CertificateError: naming the first.
    """
    _check(claim, {"mask": (claim.mask, problem.shape, _BITS), **_blocks(claim, 1)}, METHODS)
    if not isinstance(claim.apart, MaskClaim):
        raise CertificateError(f"the rows of a hybrid set need a claim on masks, got a {type(claim.apart).__name__}")


def check_weight_claim(problem: ReconstructionProblem, claim: WeightClaim) -> None:
    """Refuse the same in a claim on weights.

    Raises:
        CertificateError: naming the first.
    """
    rows, cols = problem.shape
    shapes: _Shapes = {
        "weight": (claim.weight, (rows, cols), _FLOATS),
        **_blocks(claim, problem.polytope.block_count(problem.shape)),
    }
    for name, tensor, shape in (("point", claim.point, (rows, cols)), ("tightening", claim.tightening, (cols,))):
        if (tensor is not None) != (claim.method == PERSPECTIVE):
            raise CertificateError(f"{name} belongs to method {PERSPECTIVE!r} and to no other, got {claim.method!r}")
        if tensor is not None:
            shapes[name] = (tensor, shape, _WIDE)
    _check(claim, shapes, WEIGHT_METHODS)


def _blocks(claim: Claim, blocks: int) -> _Shapes:
    """Return what the numbers of the coupled blocks must look like."""
    return {
        "block_objective": (claim.block_objective, (blocks,), _WIDE),
        "block_lower_bound": (claim.block_lower_bound, (blocks,), _WIDE),
    }


def _check(claim: Claim, shapes: _Shapes, methods: tuple[str, ...]) -> None:
    """Refuse an unknown method, and tensors and totals that are none."""
    if not isinstance(claim.method, str) or claim.method not in methods:
        raise CertificateError(f"method is {claim.method!r}; known are {', '.join(methods)}")
    for name, (tensor, shape, dtypes) in shapes.items():
        _check_tensor(name, tensor, shape, dtypes)
    _check_number("objective", claim.objective)
    _check_number("lower_bound", claim.lower_bound)


def _length(name: str, tensor: object) -> int:
    """Return how many entries a tensor of one dimension has."""
    if not isinstance(tensor, Tensor) or tensor.ndim != 1:
        raise CertificateError(f"{name} must be a tensor of one dimension, got {described(tensor)}")
    return len(tensor)


def _check_tensor(name: str, tensor: object, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse a tensor of another shape or dtype, one that numpy does not see as it is, and numbers that are none."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta or tensor.is_neg():
        raise CertificateError(f"{name} must be a plain tensor, got {described(tensor)}")
    if tuple(tensor.shape) != shape:
        raise CertificateError(f"{name} has shape {tuple(tensor.shape)}, but this problem needs {shape}")
    if tensor.dtype not in dtypes:
        what = "whole numbers" if dtypes is _WHOLE else " or ".join(str(dtype) for dtype in dtypes)
        raise CertificateError(f"{name} must hold {what}, got {tensor.dtype}")
    if not bool(tensor.isfinite().all()):
        raise CertificateError(f"{name} holds NaN or Inf")


def _check_number(name: str, value: object) -> None:
    """Refuse what is no finite number."""
    plain = type(value) in (int, float)  # subclasses compare as they like
    if not plain or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise CertificateError(f"{name} must be a finite number, got {value!r}")


def _check_indices(problem: Problem, claim: MaskClaim) -> None:
    """Refuse indices out of range, and a method cheaper than that of a row."""
    rows, proof = problem.shape[0], claim.proof
    for name, index in (("dense_rows", proof.dense_rows), ("cut_row", proof.cut_row)):
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < rows:
            raise CertificateError(f"{name} names a row that there is none of: this problem has {rows}")
    known = int(proof.row_method.max()) <= METHODS.index(claim.method) and type(claim.rows_covered) is int
    if not known or not 0 <= claim.rows_covered <= rows:
        raise CertificateError(
            f"method is {claim.method!r} over {claim.rows_covered!r} rows, which the rows' own methods and "
            f"their number, {rows}, do not allow"
        )
