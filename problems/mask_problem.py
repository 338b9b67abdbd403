"""Mask selection for one linear layer: which weights to keep."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from .errors import RelaxPruneError
from .objective import Grams, Objective
from .polytopes import Polytope
from .precision import UNIT_ROUNDOFF, row_blocks
from .problem import Problem
from .saliency import SALIENCIES, saliency
from .working_mask import WorkingMask as WorkingMask

_BAND_ENTRIES = 2**18
_JUDGE_BYTES, _JUDGE_MATRICES = 256 * 2**20, 5
_RANGE = 1e-280, 1e280  # of w² G_jj: far enough inside float64 that no rounding allowance underflows


class MaskProblem(Problem):
    """Minimise f(M) = trace((W − M∘W) G (W − M∘W)ᵀ) over the masks M of a polytope.

    f is the mean squared change of the layer's output when the weights outside M are set to zero. Rows separate: with
    z = 1 − m a row's objective is zᵀ Q z, Q = Diag(w) G Diag(w). Half the gradient in M is −W ∘ (R G), R = W − M∘W.
    With an ``Objective`` in the Gram's place f is that objective at V = M∘W: every row has a Q of its own, and a linear
    term adds −l·z, l = w ∘ linear.

    Args:
        weight: (rows, cols) = (out_features, in_features), any float dtype.
        gram: (cols, cols) second moment of the layer's inputs, as a tensor or a prepared ``Gram``; or an ``Objective``,
            or what that takes for several Grams.
        polytope: the set of masks, for instance ``KSparse(keep=288)`` or ``NM(2, 4)``.
        fixed_kept: (rows, cols) bool, entries that every mask keeps, or None.
        fixed_pruned: (rows, cols) bool, entries that every mask prunes, or None.

    Raises:
        RelaxPruneError: sizes, dtypes or values that cannot be right.
    """

    names: ClassVar[tuple[str, str]] = ("weight", "gram")
    saliencies: ClassVar[tuple[str, ...]] = SALIENCIES
    default_start: ClassVar[str] = "wanda"

    def __init__(
        self,
        weight: Tensor,
        gram: Grams | Objective,
        polytope: Polytope,
        *,
        fixed_kept: Tensor | None = None,
        fixed_pruned: Tensor | None = None,
    ) -> None:
        """Check the input; see the class."""
        super().__init__(weight, gram, polytope, fixed_kept, fixed_pruned)
        for one in self.minimised.grams:
            _check_range(self.weight, one.diagonal)

    @property
    def weight(self) -> Tensor:
        """The weight, (rows, cols)."""
        return self.term

    @property
    def gram(self) -> Tensor:
        """The Gram matrix, (cols, cols) float32 or float64."""
        return self.prepared.matrix

    @cached_property
    def dense_energy(self) -> float:
        """f(0) = trace(W G Wᵀ): the energy of the layer's output, float64."""
        return self.objective(torch.zeros(1, 1, dtype=torch.bool, device=self.device).expand(self.shape))

    @property
    def reference(self) -> float | None:
        """f(0), which relative errors are divided by; None with a linear term, where f(0) is no energy."""
        return self.dense_energy if self.minimised.linear is None else None

    @property
    def slope(self) -> Tensor | None:
        """The linear term l = w ∘ linear, (rows, cols) float64, or None: f has the term −l·z."""
        linear = self.minimised.linear
        return None if linear is None else self.weight.to(torch.float64) * linear.to(torch.float64)

    def weight_objective(self, weight: Tensor, memory_bytes: int = _JUDGE_BYTES) -> float:
        """Return f at weights V (rows, cols) that need be no mask of W, in float64."""
        total = 0.0
        for part, piece in self.split(_JUDGE_MATRICES, memory_bytes):
            error = piece.weight.to(torch.float64) - weight[part].to(torch.float64)
            total += float(piece.minimised.value(error).sum())
        return total

    def half_gradient(self, point: Tensor) -> Tensor:
        """Return −Q z + l / 2, which is −W ∘ (R G) for one Gram, R = W ∘ z, in float64: (rows, cols)."""
        weight, slope = self.weight.to(torch.float64), self.slope
        half = -weight * self.minimised.product(weight * (1 - point.to(torch.float64)))
        return half if slope is None else half + slope / 2

    def row_value(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return zᵀ Q z − l·z per row, (rows,) float64; half the gradient is −Q z + l / 2."""
        slope = self.slope
        total = half_gradient if slope is None else half_gradient + slope / 2
        return ((point.to(torch.float64) - 1) * total).sum(dim=1)

    @property
    def diagonal(self) -> Tensor:
        """w² H_jj with H a row's own matrix, the Gram or more, (rows, cols) float64."""
        return self.weight.to(torch.float64).square() * self.minimised.diagonal()

    @property
    def shared_diagonal(self) -> Tensor:
        """w² G_jj, (rows, cols) float64."""
        return self.weight.to(torch.float64).square() * self.minimised.gram_diagonal()

    @property
    def nonnegative(self) -> bool:
        """Whether the objective is an energy: there is no linear term."""
        return self.minimised.linear is None

    def rounding(self, point: Tensor) -> Tensor:
        """Bound rounding by |Q_ij| ≤ (1 + τ) sqrt(Q_ii Q_jj) and by the linear term: (rows,) float64."""
        magnitude = self.diagonal.sqrt()
        outer = magnitude.sum(dim=1)
        # 1 − m is itself rounded, so that it may vanish where what it stands for does not.
        inner = (magnitude * (1 - point).abs()).sum(dim=1) + UNIT_ROUNDOFF * outer
        reach = inner + outer if self.minimised.outputs is None else (inner + outer).sum()  # of all rows, if coupled
        found, slope = 8 * self.terms() * UNIT_ROUNDOFF * inner * reach, self.slope
        if slope is None:
            return found
        rounded = 8 * self.terms() * UNIT_ROUNDOFF * (slope.abs() * (2 + point.abs())).sum(dim=1)
        return found + rounded + UNIT_ROUNDOFF * _RANGE[0]  # w ∘ linear, whose range is not checked, may be lost

    def flattening(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return the best scale κ of z = 1 − m for each coupled block: (blocks,).

        With b = min over masks of (Q y)·z, the tangent at κ y bounds by 2 κ b − κ² yᵀQy, largest at κ = b / yᵀQy.
        """
        if self.minimised.linear is not None:
            return super().flattening(point, half_gradient)
        polytope = self.polytope
        energy = polytope.block_sum(self.row_value(point, half_gradient))
        least = polytope.block_sum((half_gradient * (polytope.lmo(half_gradient) - 1)).sum(dim=1))
        return torch.where(energy > 0, least / energy, 1.0).nan_to_num(nan=1.0).clamp(0, 2)

    def row_quadratic(self, row: int) -> tuple[Tensor, Tensor]:
        """Return Q = Diag(w) H Diag(w), H the Gram or the row's own matrix, and l − 2 Q 1."""
        weight, slope = self.weight[row].to(torch.float64), self.slope
        self.minimised.refuse_coupled("a quadratic of one row")
        quadratic = self.minimised.matrix(row) * weight * weight.unsqueeze(1)
        linear = -2 * quadratic.sum(dim=1)
        return quadratic, linear if slope is None else linear + slope[row]

    def score(self, name: str, power: float = 0.5, rows: slice = slice(None)) -> Tensor:
        """Return a saliency by name, for all or some rows, float64; ``power`` is RIA's."""
        sums = self._column_sums if name == "ria" else None
        return saliency(name, self.weight[rows], self.minimised.rows(rows).diagonal(), power, sums)

    @cached_property
    def _column_sums(self) -> Tensor:
        """Sums of |W| over rows, (cols,) float64, some rows at a time."""
        wide = (self.weight[part].abs().to(torch.float64) for part in row_blocks(*self.shape, _BAND_ENTRIES))
        return torch.stack([band.sum(dim=0) for band in wide]).sum(dim=0)

    def working(self, dtype: torch.dtype = torch.float32) -> WorkingMask:
        """Return the copy in which every coupled block has mean diagonal 1."""
        return WorkingMask.of(self.weight, self.minimised, self.polytope, dtype)


def _check_range(weight: Tensor, diagonal: Tensor) -> None:
    """Refuse weights (rows, cols) whose energies w² G_jj leave float64; only float64 can hold such weights."""
    if torch.float64 not in (weight.dtype, diagonal.dtype):
        return
    ends = []
    for values in (weight.abs(), diagonal):
        live = values[values > 0].to(torch.float64)
        ends.append([float(value) for value in live.aminmax()] if len(live) else [1.0, 1.0])
    lowest, highest = (ends[0][place] * ends[0][place] * ends[1][place] for place in (0, 1))
    if not _RANGE[0] <= lowest <= highest <= _RANGE[1]:
        raise RelaxPruneError(
            f"weight and gram must give energies w^2 G_jj from {_RANGE[0]:g} to {_RANGE[1]:g} where they are not 0, "
            f"got {lowest:.3g} to {highest:.3g}; scale one of them"
        )
