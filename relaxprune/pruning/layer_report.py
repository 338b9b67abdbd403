"""The numbers of one pruned layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from relaxprune.problems.checks import fraction
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.problem import relative_error
from relaxprune.support.json_files import is_kind

_DERIVED = ("wanda_relative_error", "relative_error", "gap", "relative_gap", "proven_share")
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float,),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "float | None": (float, type(None)),
    "list[float] | None": (list, type(None)),
    "dict[str, list[float]] | None": (dict, type(None)),
}


@dataclass(frozen=True, kw_only=True)
class InputReport:
    """The inputs of a layer.

    Attributes:
        tokens: tokens in the Gram.
        token_weight: mean of their weights, 1 if none is capped.
        shrinkage: λ of the Gram (1 − λ) G + λ Diag(G), on which all energies, objectives and bounds are taken.
        calls: the most calls of the layer in one forward pass; all count into its one Gram.
        gram: name of the first layer of those that share this layer's Gram.
        candidates: what λ was chosen among, None if it was not chosen.
        candidate_errors: of each candidate, the error on held-out text over that of Wanda's masks, a geometric mean
            over what was held out and the layers that share the Gram; empty if no text could be held out. None like the
            one before.
        held_out_errors: the same by what was held out. None like the ones before.
        minimises: what the layer's problem is, of ``ObjectiveOptions.kind``: "gram" where gradients say nothing of it.
    """

    tokens: int
    token_weight: float = 1.0
    shrinkage: float = 0.0
    calls: int
    gram: str
    candidates: list[float] | None = None
    candidate_errors: list[float] | None = None
    held_out_errors: dict[str, list[float]] | None = None
    minimises: str = "gram"

    def check_choice(self, layer: str) -> None:
        """Raise RelaxPruneError unless there is a positive error of every candidate, or none at all."""
        errors = [*filter(None, [self.candidate_errors]), *(self.held_out_errors or {}).values()]
        if any(len(row) != len(self.candidates or []) or not all(error > 0 for error in row) for row in errors):
            raise RelaxPruneError(f"layer {layer!r} must have a positive error for each candidate of its shrinkage")


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """The errors of a layer, in float64, by what it minimises (``InputReport.minimises``).

    Attributes:
        dense_energy: f(0), the objective of pruning everything.
        wanda_objective: objective of Wanda's mask on the same Gram.
        objective: objective of the mask.
        relaxed_objective: objective at the end of the convex phase, None for solvers without one.
        unrounded_objective: objective of the point that was rounded, None for solvers that do not round.
        rounded_objective: objective right after rounding, before any polish; None like the one before.
        kept_objective: if weights moved, the objective of the mask with the old ones; else None.
        corrected: if weights moved, the share of the errors of earlier layers to correct; else None.
        residual: if weights moved, the part of the objective that no weights can remove, 0 if no errors of earlier
            layers are corrected; else None.
        gram_relative_error: tr(E G Eᵀ) / tr(W G Wᵀ) of what is lost, on the layer's own Gram alone; None for a layer
            that minimises just that, whose relative error it is.
    """

    dense_energy: float
    wanda_objective: float
    objective: float
    relaxed_objective: float | None
    unrounded_objective: float | None
    rounded_objective: float | None
    kept_objective: float | None = None
    corrected: float | None = None
    residual: float | None = None
    gram_relative_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class BoundReport:
    """The proven bound on every feasible mask of a layer.

    Attributes:
        lower_bound: proven to be at most the objective of every feasible mask.
        certificate: method of the certificate; None if none was asked for, and the bound is the solver's own.
        certified_rows: rows that the method was applied to; None like the one before.
        certificate_seconds: time to make it, without the solver's; None like the ones before.
        estimated_gap: estimated relative gap if all rows were certified like those drawn, not a proof; None unless
            rows were drawn.
    """

    lower_bound: float
    certificate: str | None = None
    certified_rows: int | None = None
    certificate_seconds: float | None = None
    estimated_gap: float | None = None


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """How a layer's mask was found, and at what cost.

    Attributes:
        solver: name of the solver.
        polish: name of the polish, None for none.
        status: name of the solver's status.
        products: matrix products of the solver.
        iterations: iterations of the solver.
        seconds: time of the solver and its polish.
    """

    solver: str
    polish: str | None
    status: str
    products: float
    iterations: int
    seconds: float


_PARTS = {"inputs": InputReport, "loss": LossReport, "bound": BoundReport, "cost": CostReport}


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """The numbers of one pruned layer. Files hold them flat, with the derived ones (``to_dict``).

    Attributes:
        name: module name.
        parameter: parameter name.
        block: index of the block (or, outside the blocks, of the step) that the layer was pruned in.
        kind: "Linear", "Conv1D", "Conv2d" or "Expert".
        rows: outputs.
        cols: inputs.
        requested_sparsity: fraction to prune, as asked for or as allocated.
        sparsity: fraction pruned, counted from the mask.
        inputs: its inputs.
        loss: the errors of its output.
        bound: the bound on every mask.
        cost: how its mask was found.
    """

    name: str
    parameter: str
    block: int
    kind: str
    rows: int
    cols: int
    requested_sparsity: float
    sparsity: float
    inputs: InputReport
    loss: LossReport
    bound: BoundReport
    cost: CostReport

    @property
    def tokens(self) -> int:
        """Tokens in the Gram."""
        return self.inputs.tokens

    @property
    def calls(self) -> int:
        """The most calls of the layer in one forward pass."""
        return self.inputs.calls

    @property
    def status(self) -> str:
        """How the solver ended."""
        return self.cost.status

    @property
    def dense_energy(self) -> float:
        """Energy of the layer's output before pruning."""
        return self.loss.dense_energy

    @property
    def objective(self) -> float:
        """Objective of the mask."""
        return self.loss.objective

    @property
    def lower_bound(self) -> float:
        """Proven to be at most the objective of every feasible mask."""
        return self.bound.lower_bound

    @property
    def wanda_relative_error(self) -> float:
        """Objective of Wanda's mask / dense energy; 0 for a layer without energy."""
        return relative_error(self.loss.wanda_objective, self.loss.dense_energy)

    @property
    def relative_error(self) -> float:
        """Objective / dense energy; 0 for a layer without energy."""
        return relative_error(self.objective, self.loss.dense_energy)

    @property
    def gram_relative_error(self) -> float:
        """The relative error on the layer's own Gram alone, whatever it minimises."""
        alone = self.loss.gram_relative_error
        return self.relative_error if alone is None else alone

    @property
    def wanda_ratio(self) -> float:
        """Objective / Wanda's objective; 1 if both are 0."""
        return self.objective / self.loss.wanda_objective if self.loss.wanda_objective > 0 else 1.0

    @property
    def gap(self) -> float:
        """Objective - lower bound, at least 0."""
        return max(0.0, self.objective - self.lower_bound)

    @property
    def relative_gap(self) -> float:
        """Gap / objective; 0 without a gap, infinity if the objective is 0 and the bound below it."""
        if not self.objective:
            return math.inf if self.gap > 0 else 0.0
        return self.gap / abs(self.objective)

    @property
    def proven_share(self) -> float | None:
        """(Wanda's objective - objective) / (Wanda's objective - lower bound), in [0, 1].

        How much of the way from Wanda's mask to the bound is done; None if Wanda's objective does not exceed the bound.
        """
        wanda, bound = self.loss.wanda_objective, self.lower_bound
        return min(1.0, max(0.0, (wanda - self.objective) / (wanda - bound))) if wanda > bound else None

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers in one flat dict, as plain numbers and strings."""
        flat: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            flat |= vars(value) if field.name in _PARTS else {field.name: value}
        return flat | {name: getattr(self, name) for name in _DERIVED}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerReport:
        """Undo ``to_dict``. Files of earlier versions may lack what has a default; other keys are passed over.

        Raises:
            RelaxPruneError: a key is missing, or a value is of another kind or out of range.
        """
        own = _read(data, [field for field in fields(cls) if field.name not in _PARTS])
        if own["rows"] < 1 or own["cols"] < 1:
            raise RelaxPruneError(f"layer {own['name']!r} has no weights")
        for name in ("requested_sparsity", "sparsity"):
            fraction(f"{name} of layer {own['name']!r}", own[name])
        report = cls(**own, **{name: part(**_read(data, fields(part))) for name, part in _PARTS.items()})
        report.inputs.check_choice(report.name)
        return report


def _read(data: Mapping[str, Any], wanted: Iterable[Field[Any]]) -> dict[str, Any]:
    """Return the values of some fields that are there, all of their kinds."""
    found = {}
    for field in wanted:
        if field.name in data:
            value = data[field.name]
            if not is_kind(value, _KINDS[str(field.type)]) or not _numbers_inside(value):
                raise RelaxPruneError(
                    f"{field.name} of layer {data.get('name')!r} must be {field.type}, got a {type(value).__name__}"
                )
            found[field.name] = value
        elif field.default is MISSING:
            raise RelaxPruneError(f"a layer lacks {field.name!r}")
    return found


def _numbers_inside(value: Any) -> bool:
    """Return whether a list, or the lists of a dict, hold numbers; anything else does."""
    if isinstance(value, dict):
        return all(isinstance(part, list) and _numbers_inside(part) for part in value.values())
    return not isinstance(value, list) or all(is_kind(item, float) for item in value)
