"""The numbers of one pruned layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relaxprune.problems.errors import RelaxPruneError


@dataclass(frozen=True)
class LayerReport:
    """The numbers of one pruned layer; energies and objectives in float64, on the Gram with the stated tokens.

    Attributes:
        name: module name.
        parameter: parameter name.
        block: index of the block (or, outside the blocks, of the step) that the layer was pruned in.
        kind: "Linear", "Conv1D" or "Conv2d".
        rows: outputs.
        cols: inputs.
        requested_sparsity: fraction to prune that was asked for.
        sparsity: fraction pruned, counted from the mask.
        tokens: tokens in the Gram.
        token_weight: mean of their weights, 1 where none is capped.
        shrinkage: λ of the Gram (1 − λ) G + λ Diag(G), on which all energies, objectives and bounds are taken.
        calls: the most calls of the layer in one forward pass; all count into its one Gram.
        gram: name of the first layer of those that share this layer's Gram.
        dense_energy: f(0), the objective of pruning everything.
        wanda_objective: objective of Wanda's mask on the same Gram.
        objective: objective of the mask.
        wanda_relative_error: wanda_objective / dense_energy.
        relative_error: objective / dense_energy.
        relaxed_objective: objective at the end of the convex phase, None for solvers without one.
        unrounded_objective: objective of the point that was rounded, None for solvers that do not round.
        rounded_objective: objective right after rounding, before any polish; None like the one before.
        lower_bound: proven to be at most the objective of every feasible mask.
        gap: objective - lower_bound.
        relative_gap: gap / objective.
        solver: name of the solver.
        polish: name of the polish, None for none.
        status: name of the solver's status.
        products: matrix products of the solver.
        iterations: iterations of the solver.
        seconds: time of the solver and its polish.
        certificate: method of the certificate that the bound and the gap are of; None where none was asked for, and
            they are the solver's own.
        certified_rows: rows that the method was applied to; None like the one before.
        certificate_seconds: time to make it, besides ``seconds``; None like the ones before.
        estimated_gap: relative gap if all rows were certified like those drawn, an estimate and no proof; None where
            all were, or none were drawn.
        proven_share: (wanda_objective - objective) / (wanda_objective - lower_bound), in [0, 1]: how much of the way
            from Wanda's mask to the bound is done; None where Wanda's objective does not exceed the bound.
        kept_objective: where weights moved, the objective of the mask with them as they were; else None.
        corrected: where weights moved, the share of the errors of earlier layers that they were to correct; else None.
        residual: where weights moved, the part of the objective that no weights can remove, 0 where nothing of earlier
            layers is corrected; else None.
    """

    name: str
    parameter: str
    block: int
    kind: str
    rows: int
    cols: int
    requested_sparsity: float
    sparsity: float
    tokens: int
    calls: int
    gram: str
    dense_energy: float
    wanda_objective: float
    objective: float
    wanda_relative_error: float
    relative_error: float
    relaxed_objective: float | None
    unrounded_objective: float | None
    rounded_objective: float | None
    lower_bound: float
    gap: float
    relative_gap: float
    solver: str
    polish: str | None
    status: str
    products: float
    iterations: int
    seconds: float
    certificate: str | None = None
    certified_rows: int | None = None
    certificate_seconds: float | None = None
    estimated_gap: float | None = None
    proven_share: float | None = None
    token_weight: float = 1.0
    shrinkage: float = 0.0
    kept_objective: float | None = None
    corrected: float | None = None
    residual: float | None = None

    @property
    def wanda_ratio(self) -> float:
        """Objective over Wanda's objective; 1 where both are 0."""
        return self.objective / self.wanda_objective if self.wanda_objective > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as plain numbers and strings."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerReport:
        """Undo ``to_dict``.

        Raises:
            RelaxPruneError: missing or unknown keys.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(data) != names:
            raise RelaxPruneError(f"a layer report must have exactly the keys {sorted(names)}, got {sorted(data)}")
        return cls(**data)
