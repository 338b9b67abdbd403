"""Choosing a mask together with new values for the weights that it keeps."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .checks import check_finite, check_floats, described, number
from .errors import RelaxPruneError
from .gram import Gram
from .mask_problem import MaskProblem
from .polytopes import Polytope
from .polytopes.base import Shape
from .precision import product64, row_blocks
from .problem import BaseProblem

_NOT_JOINT = 1e-4  # of the energies: a residual below minus this is not rounding of float32 moments
_TAKEN_OFF = 1e-10  # of the terms' sizes: for the rounding of the residual
_BAND_BYTES = 256 * 2**20
_JUDGE_MATRICES = 4  # (rows, cols) float64 tensors held while judging


class ReconstructionProblem(BaseProblem):
    """Minimise f(V) = trace((W − V) G (W − V)ᵀ) over weights V that are 0 outside a mask of a polytope.

    With ``cross`` C = E[x x̃ᵀ] the layer reads x in the dense model and x̃ in the pruned one, ``gram`` is E[x̃ x̃ᵀ],
    and V should give on x̃ what W gives on x: f(V) = tr(W G_dense Wᵀ) − 2 tr(W C Vᵀ) + tr(V G Vᵀ), so that the errors
    of earlier layers are corrected instead of passed on. Both are, up to a constant, distances from one matrix:
    f(V) = residual + tr((T − V) H (T − V)ᵀ) with ``target`` T (W itself without ``cross``) and
    ``prepared`` H = G + damping · mean(diag G) · I.

    Args:
        weight: (rows, cols) = (out_features, in_features), any float dtype.
        gram: (cols, cols) second moment of the layer's inputs as it reads them, as a tensor or a prepared ``Gram``.
        polytope: the set of masks.
        cross: (cols, cols) E[x x̃ᵀ], rows for the dense model's inputs, or None.
        dense_gram: (cols, cols) E[x xᵀ] of the dense model; needed with ``cross``, and only then.
        damping: adds damping · mean(diag G) · ‖W − V‖² to the objective; at least 0.

    Raises:
        RelaxPruneError: sizes, dtypes or values that cannot be right, or a Gram that is not positive semidefinite: the
            problem would be unbounded.
    """

    moves_weights: ClassVar[Literal[True]] = True

    def __init__(
        self,
        weight: Tensor,
        gram: Tensor | Gram,
        polytope: Polytope,
        *,
        cross: Tensor | None = None,
        dense_gram: Tensor | None = None,
        damping: float = 0.0,
    ) -> None:
        """Check the input; see the class."""
        number("damping", damping, 0)
        read = gram if isinstance(gram, Gram) else Gram(gram)
        self.damping = float(damping)
        self.prepared: Gram = read.damped(self.damping)
        if not self.prepared.proof.psd:
            raise RelaxPruneError(
                "gram must be proven positive semidefinite for weights that move, but its smallest eigenvalue in "
                f"correlation scaling may be -{self.prepared.proof.shift:.3g}; give damping, such as 1e-6"
            )
        dense = MaskProblem(weight, read, polytope)
        self.weight: Tensor = dense.weight
        self.polytope: Polytope = polytope
        _check_cross(cross, dense_gram, dense)
        self.ridge: float = self.damping * read.scale  # what ‖W − V‖² costs
        self.target: Tensor = self.weight
        if cross is not None and dense_gram is not None:
            self.target = _target(self.weight, cross, self.prepared, self.ridge)
        self.cross: Tensor | None = cross
        self.dense_gram: Tensor | None = dense_gram
        _ = self.residual

    def within(self, polytope: Polytope) -> ReconstructionProblem:
        """Return the same problem with another set of masks."""
        narrow = copy(self)
        narrow.polytope = polytope
        narrow.__dict__.pop("mask_problem", None)
        return narrow

    @property
    def shape(self) -> Shape:
        """(rows, cols) of the weight."""
        rows, cols = self.weight.shape
        return int(rows), int(cols)

    @property
    def device(self) -> torch.device:
        """Where the weight lives."""
        return self.weight.device

    @cached_property
    def mask_problem(self) -> MaskProblem:
        """The mask problem of the target: its objective is f of the masked target minus the residual."""
        return MaskProblem(self.target, self.prepared, self.polytope)

    @cached_property
    def row_energy(self) -> Tensor:
        """The energy w G_dense wᵀ of each row w, (rows,) float64, without damping."""
        if self.dense_gram is None:
            return _energy(self.weight, self.prepared.matrix) - self._ridge_energy
        return _energy(self.weight, self.dense_gram)

    @property
    def _ridge_energy(self) -> Tensor:
        """What damping adds to the energy of each row of the weight, (rows,) float64."""
        return self.ridge * self.weight.to(torch.float64).square().sum(dim=1)

    @cached_property
    def reference(self) -> float:
        """trace(W G_dense Wᵀ), which relative errors are divided by."""
        return float(self.row_energy.sum())

    @cached_property
    def residual(self) -> Tensor:
        """The error that no weights can remove, (rows,) float64, as computed: 0 without ``cross``.

        Raises:
            RelaxPruneError: it is negative, so ``cross``, ``gram`` and ``dense_gram`` are not of the same tokens.
        """
        if self.cross is None:
            return torch.zeros(self.shape[0], dtype=torch.float64, device=self.device)
        reached = _energy(self.target, self.prepared.matrix)
        whole = self.row_energy + self._ridge_energy
        residual = whole - reached
        if bool((residual < -_NOT_JOINT * (whole + reached)).any()):
            raise RelaxPruneError(
                "cross, gram and dense_gram must be moments of the same tokens, all means or all sums, but together "
                f"they leave a negative error of {float((residual / whole).min()):.3g} of a row's energy"
            )
        return residual

    def residual_of_blocks(self) -> Tensor:
        """Return what is proven of ``residual``, (blocks,) float64: no weights do better, whatever the mask.

        It is a difference of sums, and taken at a target that is rounded itself; both are taken off, so that it may be
        a little below 0.
        """
        if self.cross is None or self.dense_gram is None:
            return self.polytope.block_sum(self.residual)
        heavy, light = self.weight.to(torch.float64).abs(), self.target.to(torch.float64).abs()
        size = self._ridge_energy + _energy(heavy, self.dense_gram.abs()) + _energy(light, self.prepared.matrix.abs())
        size += (product64(heavy, self.cross.abs()) * light).sum(dim=1)
        return self.polytope.block_sum(self.residual - _TAKEN_OFF * size)

    def block_objective(self, answer: Tensor, memory_bytes: int = _BAND_BYTES) -> Tensor:
        """Return f of each coupled block at weights V (rows, cols): (blocks,) float64."""
        return self.polytope.block_sum(
            _energy(self.target, self.prepared.matrix, answer, memory_bytes=memory_bytes) + self.residual
        )


def _energy(values: Tensor, matrix: Tensor, less: Tensor | None = None, memory_bytes: int = _BAND_BYTES) -> Tensor:
    """Return v M vᵀ of each row v of ``values`` − ``less`` (rows, cols), some rows at a time: (rows,) float64."""
    parts = []
    for part in row_blocks(values.shape[0], 8 * _JUDGE_MATRICES * values.shape[1], memory_bytes):
        wide = values[part].to(torch.float64)
        if less is not None:
            wide = wide - less[part].to(torch.float64)
        parts.append((wide * product64(wide, matrix)).sum(dim=1))
    return torch.cat(parts)


def _check_cross(cross: Tensor | None, dense_gram: Tensor | None, dense: MaskProblem) -> None:
    """Refuse matrices that cannot belong together.

    Raises:
        RelaxPruneError: one without the other, or a wrong shape, dtype, device or value.
    """
    if (cross is None) != (dense_gram is None):
        missing, given = ("dense_gram", "cross") if dense_gram is None else ("cross", "dense_gram")
        raise RelaxPruneError(f"{missing} is needed with {given}: the dense layer's output is measured with it")
    cols = dense.shape[1]
    for name, matrix in (("cross", cross), ("dense_gram", dense_gram)):
        if matrix is None:
            continue
        check_floats(name, matrix, form=str((cols, cols)))
        if tuple(matrix.shape) != (cols, cols):
            raise RelaxPruneError(f"{name} must be a float tensor of shape {(cols, cols)}, got {described(matrix)}")
        if matrix.device != dense.device:
            raise RelaxPruneError(f"{name} is on {matrix.device}, but weight is on {dense.device}")
        check_finite(name, matrix)


def _target(weight: Tensor, cross: Tensor, gram: Gram, ridge: float) -> Tensor:
    """Return the weights without a mask, T = (W C + ridge W) H⁻¹, in float64: (rows, cols).

    Raises:
        RelaxPruneError: H is singular, so T is not determined.
    """
    wide = weight.to(torch.float64)
    right = product64(wide, cross) + ridge * wide
    root = torch.where(gram.diagonal > 0, gram.diagonal.to(torch.float64), 1.0).rsqrt()
    factor, info = torch.linalg.cholesky_ex(gram.full_correlation())
    if int(info):
        raise RelaxPruneError("gram is singular, so cross does not determine the target; give damping, such as 1e-4")
    return torch.cholesky_solve((right * root).T, factor).T * root
