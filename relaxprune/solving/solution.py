"""What every solve returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relaxprune.solvers.base import Counts, Status
from relaxprune.support.markup import piece

if TYPE_CHECKING:
    from torch import Tensor

    from relaxprune.certificates import Certificate

__all__ = ["Counts", "Solution", "Status"]

CLOSED = 1e-9  # of the objective: a gap that is called closed


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """A mask, how good it is, and how good any mask could be. The same for every solver.

    Attributes:
        mask: (rows, cols) bool, exactly feasible; True = kept.
        objective: f(mask), float64, recomputed from the mask.
        relative_error: objective / f(0), the share of the layer's output energy that is lost, 0 if there is none;
            None for a ``QuadraticProblem``, which has no natural objective to divide by.
        certificate: the proof behind ``lower_bound``, recomputed from the problem: a ``MaskCertificate``, or a
            ``WeightCertificate`` where weights move.
        block_objective: (blocks,) float64, the objective of each coupled block.
        relaxed_mask: (rows, cols), the end of the convex phase, comparable with the bound; None for one-shot solvers.
        relaxed_objective: f(relaxed_mask), or None.
        unrounded_objective: f at the point that was rounded, or None.
        rounded_objective: f right after rounding, before any polish, or None.
        status: how the solve ended; its value is advice.
        stats: iterations, products, swaps, seconds.
        solver: the solver's name.
        options: its effective options.
        polish: the polish that was applied, or None.
        weight: (rows, cols) in the dtype of the problem's weight, +0.0 outside the mask: the new weights of a
            ``ReconstructionProblem``, whose error ``objective`` is; None if weights stay.
        kept_objective: for a ``ReconstructionProblem``, f of the target's weights on the mask, unchanged; otherwise
            None.
    """

    mask: Tensor
    objective: float
    relative_error: float | None
    certificate: Certificate
    block_objective: Tensor
    relaxed_mask: Tensor | None
    relaxed_objective: float | None
    unrounded_objective: float | None
    rounded_objective: float | None
    status: Status
    stats: Counts
    solver: str
    options: dict[str, Any]
    polish: str | None
    weight: Tensor | None = None
    kept_objective: float | None = None

    @property
    def lower_bound(self) -> float:
        """A number proven to be at most the objective of every feasible mask."""
        return self.certificate.lower_bound

    @property
    def block_lower_bound(self) -> Tensor:
        """The bound of each coupled block, (blocks,) float64."""
        return self.certificate.block_lower_bound

    @property
    def gap(self) -> float:
        """``objective`` − ``lower_bound``, at least 0."""
        return self.certificate.gap

    @property
    def relative_gap(self) -> float:
        """``gap`` / ``objective``; 0 for a zero objective."""
        return self.certificate.relative_gap

    @property
    def rounding_loss(self) -> float | None:
        """Objective right after rounding − objective at the point that was rounded; None for one-shot solvers."""
        if self.rounded_objective is None or self.unrounded_objective is None:
            return None
        return self.rounded_objective - self.unrounded_objective

    def _repr_html_(self) -> str:
        """Show the numbers as a small table, with the objective of every coupled block, in a notebook."""
        rows = [
            ("solver", self.solver),
            ("status", self.status.name),
            ("sparsity", 1 - float(self.mask.double().mean())),
            ("relative error", self.relative_error),
            ("objective", self.objective),
            ("objective, weights kept", self.kept_objective),
            ("lower bound", self.lower_bound),
            ("relative gap", self.relative_gap),
            ("products", float(self.stats.products)),
            ("seconds", float(self.stats.seconds)),
        ]
        shown = [(name, value) for name, value in rows if value is not None]
        blocks = ("objective of each coupled block", self.block_objective.tolist())
        return piece(f"Solution, {self.mask.shape[0]} x {self.mask.shape[1]}", shown, [blocks])

    def __repr__(self) -> str:
        """Show the numbers, not the tensors."""
        relative = "" if self.relative_error is None else f"relative_error={self.relative_error:.4g}, "
        return (
            f"Solution(solver={self.solver!r}, objective={self.objective:.6g}, {relative}"
            f"lower_bound={self.lower_bound:.6g}, "
            f"relative_gap={self.relative_gap:.3g}, status={self.status.name})"
        )
