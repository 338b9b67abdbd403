"""What a certificate must look like before its numbers are judged."""

from __future__ import annotations

import math

import torch

from relaxprune.problems import Problem, RelaxPruneError

from ..certificate import Certificate
from ..underestimator import METHODS


class CertificateError(RelaxPruneError):
    """A certificate does not prove what it says: what failed, in which row, with the numbers."""


_WHOLE = ("row_method", "dense_rows", "cut_row", "cut_index", "cut_sign")


def _check_indices(problem: Problem, certificate: Certificate) -> None:
    """Refuse rows that there are none of, and a method below that of a row."""
    rows, proof = problem.shape[0], certificate.proof
    for name, index in (("dense_rows", proof.dense_rows), ("cut_row", proof.cut_row)):
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < rows:
            raise CertificateError(f"{name} names a row that there is none of: this problem has {rows}")
    known = certificate.method in METHODS and int(proof.row_method.max()) <= METHODS.index(certificate.method)
    if not known or not 0 <= certificate.rows_covered <= rows:
        raise CertificateError(
            f"method is {certificate.method!r} over {certificate.rows_covered} rows, which the rows' own methods and "
            f"their number, {rows}, do not allow"
        )


def check_tensors(problem: Problem, certificate: Certificate) -> None:
    """Refuse tensors of the wrong shape, and numbers that are none."""
    rows, cols = problem.shape
    proof, blocks = certificate.proof, problem.polytope.block_count(problem.shape)
    dense, cuts = len(proof.dense_rows), len(proof.cut_row)
    shapes = {
        "mask": (certificate.mask, (rows, cols)),
        "block_objective": (certificate.block_objective, (blocks,)),
        "block_lower_bound": (certificate.block_lower_bound, (blocks,)),
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
        if tuple(tensor.shape) != shape:
            raise CertificateError(f"{name} has shape {tuple(tensor.shape)}, but this problem needs {shape}")
        if not bool(tensor.isfinite().all()):
            raise CertificateError(f"{name} holds NaN or Inf")
        whole = name in _WHOLE
        if whole and (tensor.is_floating_point() or tensor.dtype == torch.bool):
            raise CertificateError(f"{name} must hold whole numbers, got {tensor.dtype}")
    _check_indices(problem, certificate)
    shift = certificate.checks.get("shift")
    if not isinstance(shift, (int, float)) or not 0 <= shift < math.inf:
        raise CertificateError(f"checks['shift'] must be a number of at least 0, got {shift!r}")
