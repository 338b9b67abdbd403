"""Mask selection for one linear layer: which weights to keep."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .errors import RelaxPruneError
from .gram import Gram
from .neighbours import Neighbours
from .polytopes import Polytope
from .precision import UNIT_ROUNDOFF, product64, row_blocks
from .problem import Problem
from .saliency import SALIENCIES, saliency
from .working import Working

_BAND_ENTRIES = 2**18
_RANGE = 1e-280, 1e280  # of w² G_jj: far enough inside float64 that no rounding allowance underflows


class MaskProblem(Problem):
    """Minimise f(M) = trace((W − M∘W) G (W − M∘W)ᵀ) over the masks M of a polytope.

    f is the mean squared change of the layer's output when the weights outside M are set to zero. Rows separate: with
    z = 1 − m a row's objective is zᵀ Q z, Q = Diag(w) G Diag(w). Half the gradient in M is −W ∘ (R G), R = W − M∘W.

    Args:
        weight: (rows, cols) = (out_features, in_features), any float dtype.
        gram: (cols, cols) second moment of the layer's inputs, as a tensor or a prepared ``Gram``.
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
        gram: Tensor | Gram,
        polytope: Polytope,
        *,
        fixed_kept: Tensor | None = None,
        fixed_pruned: Tensor | None = None,
    ) -> None:
        """Check the input; see the class."""
        super().__init__(weight, gram, polytope, fixed_kept, fixed_pruned)
        _check_range(self.weight, self.prepared.diagonal)

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
    def reference(self) -> float:
        """f(0), which relative errors are divided by."""
        return self.dense_energy

    def half_gradient(self, point: Tensor) -> Tensor:
        """Return −W ∘ (R G), R = W ∘ (1 − m), in float64: (rows, cols)."""
        weight = self.weight.to(torch.float64)
        return -weight * product64(weight * (1 - point.to(torch.float64)), self.gram)

    def row_value(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return zᵀ Q z per row, (rows,) float64; half the gradient is −Q z."""
        return ((point.to(torch.float64) - 1) * half_gradient).sum(dim=1)

    @property
    def diagonal(self) -> Tensor:
        """w² G_jj, (rows, cols) float64."""
        return self.weight.to(torch.float64).square() * self.prepared.diagonal.to(torch.float64)

    @property
    def nonnegative(self) -> bool:
        """True: the objective is an energy."""
        return True

    def rounding(self, point: Tensor) -> Tensor:
        """Bound rounding by |G_ij| ≤ (1 + τ) sqrt(G_ii G_jj): (rows,) float64."""
        magnitude = self.diagonal.sqrt()
        outer = magnitude.sum(dim=1)
        # 1 − m is itself rounded, so that it may vanish where what it stands for does not.
        inner = (magnitude * (1 - point).abs()).sum(dim=1) + UNIT_ROUNDOFF * outer
        return 8 * self.terms() * UNIT_ROUNDOFF * inner * (inner + outer)

    def flattening(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return the best scale κ of z = 1 − m for each coupled block: (blocks,).

        With b = min over masks of (Q y)·z, the tangent at κ y bounds by 2 κ b − κ² yᵀQy, largest at κ = b / yᵀQy.
        """
        polytope = self.polytope
        energy = polytope.block_sum(self.row_value(point, half_gradient))
        least = polytope.block_sum((half_gradient * (polytope.lmo(half_gradient) - 1)).sum(dim=1))
        return torch.where(energy > 0, least / energy, 1.0).nan_to_num(nan=1.0).clamp(0, 2)

    def row_quadratic(self, row: int) -> tuple[Tensor, Tensor]:
        """Return Q = Diag(w) G Diag(w) and −2 Q 1."""
        weight = self.weight[row].to(torch.float64)
        quadratic = self.gram.to(torch.float64) * weight * weight.unsqueeze(1)
        return quadratic, -2 * quadratic.sum(dim=1)

    def score(self, name: str, power: float = 0.5, rows: slice = slice(None)) -> Tensor:
        """Return a saliency by name, for all or some rows, float64; ``power`` is RIA's."""
        sums = self._column_sums if name == "ria" else None
        return saliency(name, self.weight[rows], self.prepared.diagonal, power, sums)

    @cached_property
    def _column_sums(self) -> Tensor:
        """Sums of |W| over rows, (cols,) float64, some rows at a time."""
        wide = (self.weight[part].abs().to(torch.float64) for part in row_blocks(*self.shape, _BAND_ENTRIES))
        return torch.stack([band.sum(dim=0) for band in wide]).sum(dim=0)

    def working(self, dtype: torch.dtype = torch.float32) -> WorkingMask:
        """Return the copy in which every coupled block has mean diagonal 1."""
        return WorkingMask.of(self, dtype)


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


class WorkingMask(Working):
    """A ``MaskProblem`` scaled so that every coupled block is of order one.

    The Gram keeps its memory if its dtype already fits: its scale is folded into the weight, since
    Diag(w) G Diag(w) is all that enters.
    """

    def __init__(
        self, weight: Tensor, gram: Tensor, diagonal: Tensor, polytope: Polytope, source: Gram | None = None
    ) -> None:
        """Take the scaled tensors, and the Gram that knows its neighbours; use ``of``."""
        self.weight = weight  # (rows, cols)
        self.gram = gram  # (cols, cols)
        self.diagonal = diagonal  # (rows, cols)
        self.polytope = polytope
        self.source = source

    @classmethod
    def of(cls, problem: MaskProblem, dtype: torch.dtype) -> WorkingMask:
        """Scale a problem: divide each coupled block by its root mean square of |w| sqrt(G_jj)."""
        polytope, gram = problem.polytope, problem.prepared
        wide = problem.weight.to(torch.float64)
        energy = polytope.block_sum((wide.square() * gram.diagonal.to(torch.float64)).mean(dim=1))
        scale = polytope.to_rows(torch.where(energy > 0, energy, 1.0).rsqrt(), wide.shape[0])
        weight = (wide * (scale * gram.unit(dtype))).to(dtype)
        matrix = gram.in_dtype(dtype)
        return cls(weight, matrix, weight.square() * matrix.diagonal(), polytope, gram)

    def image(self, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """Return W ∘ ((W ∘ direction) G)."""
        return self.multiplied(self.weight * direction, out).mul_(self.weight)

    def matrix_of_products(self) -> Tensor:
        """Return the Gram."""
        return self.gram

    def half_gradient(self, point: Tensor) -> Tensor:
        """Return −W ∘ ((W ∘ (1 − m)) G)."""
        return self.full().image(point - 1)

    def row_value(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return zᵀ Q z per row: (rows,)."""
        value: Tensor = torch.linalg.vecdot(point - 1, half_gradient)
        return value

    def summed(self, mask: Tensor) -> Tensor:
        """Return the pruned entries."""
        return ~mask

    def select(self, index: Tensor) -> Self:
        """Return the rows in ``index``."""
        part = copy(self)
        part.weight, part.diagonal, part.polytope = self.weight[index], self.diagonal[index], self.polytope.rows(index)
        return part

    def coupling(self, rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return w_i G_ij w_j: (R, K, L)."""
        line = rows.unsqueeze(1)
        entries = self.gram[left.unsqueeze(2), right.unsqueeze(1)]
        return entries.mul_(self.weight[line, left].unsqueeze(2)).mul_(self.weight[line, right].unsqueeze(1))

    def coupling_with(self, rows: Tensor, partner: Tensor) -> Tensor:
        """Return w_j G_jp w_p with p the partner of j: (R, cols)."""
        weight = self.weight[rows]
        line = self.gram.gather(1, partner.unsqueeze(1)).squeeze(1)
        return weight[:, partner].mul_(weight).mul_(line)

    def coupling_sum(self, rows: Tensor, columns: Tensor, factors: Tensor) -> Tensor:
        """Return w ∘ Σ factors w_c G_c: (R, cols)."""
        weight = self.weight[rows]
        total = embedding_bag(columns, self.gram, per_sample_weights=weight.gather(1, columns) * factors, mode="sum")
        return total.mul_(weight)

    def group_coupling(self, group: int) -> Tensor:
        """Return the diagonal blocks of Diag(w) G Diag(w): (rows, groups, group, group)."""
        groups = self.gram.shape[0] // group
        blocks = self.gram.view(groups, group, groups, group).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight = self.weight.view(-1, groups, group)
        return weight.unsqueeze(3) * blocks * weight.unsqueeze(2)

    @property
    def neighbours(self) -> Neighbours:
        """The most correlated columns of each column, from the Gram alone."""
        return Neighbours.of(self.gram) if self.source is None else self.source.neighbours
