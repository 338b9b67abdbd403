"""What pruning a model reports: per layer, per block, as a whole, and while it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from relaxprune.models.layer_roles import RoleSummary, summarise
from relaxprune.models.layers import SkippedLayer
from relaxprune.support.markup import piece
from relaxprune.support.tables import table

from .channels.permutation import Permutation
from .coverage import Coverage
from .layer_report import LayerReport
from .selected import Chosen

if TYPE_CHECKING:
    from .tuning.gains import BlockTuning, Refinement, RefiningState, ReselectingState, Reselection

UNREACHED = "no batch reached it"
# Reasons that the user must see; each goes on in its own way.
MISFIT = "misfit"
OTHER_SIDE = "of the blocks"
_RELATIVE_ERRORS = ("wanda_relative_error", "relative_error")
_MOST_NAMES = 12  # layers that one reason names; the run folder's report has all of them


@dataclass(frozen=True, kw_only=True)
class PruneEvent:
    """Something happened.

    Attributes:
        kind: "block_start", "layer_start", "layer_done" or "block_done"; then "reselect_start", "reselect_round" and
            "reselect_done", if masks are chosen again, and "refine_start", "refine_step", "refine_pass" and
            "refine_done", if the model is refined.
        block: index of the block; of the events after "block_done", the last one.
        blocks: number of blocks.
        layer: name of the layer, None for events of blocks.
        layer_index: layers finished or skipped before this event.
        layers: number of layers in the plan.
        report: the layer's report, for "layer_done".
        seconds_elapsed: since the start of ``prune_model``.
        refining: how far refining, or choosing masks again, is, for its events.
    """

    kind: str
    block: int
    blocks: int
    layer: str | None
    layer_index: int
    layers: int
    report: LayerReport | None
    seconds_elapsed: float
    refining: RefiningState | ReselectingState | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PruneReport:
    """The result of ``prune_model``.

    Attributes:
        layers: one report per pruned layer, in the order of pruning.
        skipped: every matrix that was not pruned, with a reason.
        seconds: stage -> seconds; stages are capture, allocate (the pass over the dense model that decides the
            layers' shares, if any), permute, select, tune, reselect and refine (if asked for), statistics, solve (and
            judge, with Wanda's mask for comparison), exchange (of what ranks have solved), propagate, record, total. A
            continued run counts the earlier sessions, each until its last finished block.
        polytope: what was asked for, as in ``Target.to_dict``.
        solver: name of the solver.
        options: all of ``PruneOptions``, and the effective options of the solver as "solver_options".
        propagation: "replay" (blocks were run on stored inputs), "rerun" (the whole model was run for each block) or
            "rerun: REASON" when the model has blocks that cannot be replayed.
        masks: parameter name -> (rows, cols) bool on the CPU, True = kept, of the weights in their new order.
        permutations: for each pruned layer the order of its columns, or why it kept it; empty without ``permute``.
        weights: parameter name -> (rows, cols) on the CPU, the new values of weights that moved.
        tunings: the gain of each block that was tuned as a whole; the layers' objectives are from before it.
        refinement: the gain of refining the whole model, None without ``refine``; objectives, bounds and certificates
            are from before it.
        reselection: the gain of choosing masks again by the whole model, None without ``reselect``; objectives, bounds
            and gaps of layers are of the masks before it, while ``masks`` are those after it.
        coverage: how much of the model was pruned; None where nobody has counted.
        left_out: what the solver's published method does and this run was told not to do.
    """

    layers: list[LayerReport]
    skipped: list[SkippedLayer]
    seconds: dict[str, float]
    polytope: dict[str, Any]
    solver: str
    options: dict[str, Any]
    propagation: str
    masks: Mapping[str, Tensor] = dataclasses.field(repr=False)
    permutations: list[Permutation] = dataclasses.field(default_factory=list, repr=False)
    weights: Mapping[str, Tensor] = dataclasses.field(default_factory=dict, repr=False)
    tunings: list[BlockTuning] = dataclasses.field(default_factory=list, repr=False)
    refinement: Refinement | None = None
    reselection: Reselection | None = None
    coverage: Coverage | None = None
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def sparsity(self) -> float:
        """Fraction pruned of all entries of all pruned layers."""
        entries = sum(layer.rows * layer.cols for layer in self.layers)
        return sum(layer.sparsity * layer.rows * layer.cols for layer in self.layers) / max(entries, 1)

    @property
    def mean_relative_error(self) -> float:
        """Mean over layers of objective / dense energy."""
        return _mean([layer.relative_error for layer in self.layers])

    @property
    def mean_gram_relative_error(self) -> float | None:
        """The same on the layers' Grams alone; None if all of them minimise just that."""
        if all(layer.loss.gram_relative_error is None for layer in self.layers):
            return None
        return _mean([layer.gram_relative_error for layer in self.layers])

    @property
    def mean_wanda_relative_error(self) -> float:
        """Mean over layers of the relative error of Wanda's mask on the same Gram."""
        return _mean([layer.wanda_relative_error for layer in self.layers])

    @property
    def mean_wanda_ratio(self) -> float:
        """Mean over layers of objective / Wanda's objective."""
        return _mean([layer.wanda_ratio for layer in self.layers])

    @property
    def mean_relative_gap(self) -> float:
        """Mean over layers of (objective - lower bound) / objective."""
        return _mean([layer.relative_gap for layer in self.layers])

    @property
    def unreached(self) -> list[str]:
        """Names of the layers of the plan that were not pruned because no batch reached them."""
        return [layer.name for layer in self.skipped if layer.reason == UNREACHED]

    def skipped_for(self, reason: str) -> list[SkippedLayer]:
        """Return the layers that were not pruned for a kind of reason."""
        return [layer for layer in self.skipped if layer.reason.startswith(reason)]

    @property
    def roles(self) -> list[RoleSummary]:
        """Mean relative gap and proven share of the layers with the same role (q_proj, up_proj, ...)."""
        rows = [(item.name, item.relative_gap, item.bound.estimated_gap, item.proven_share) for item in self.layers]
        return summarise(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the masks, as plain numbers, strings, lists and dicts."""
        return {
            "sparsity": self.sparsity,
            "mean_relative_error": self.mean_relative_error,
            "mean_gram_relative_error": self.mean_gram_relative_error,
            "mean_wanda_relative_error": self.mean_wanda_relative_error,
            "mean_wanda_ratio": self.mean_wanda_ratio,
            "mean_relative_gap": self.mean_relative_gap,
            "polytope": self.polytope,
            "solver": self.solver,
            "left_out": self.left_out,
            "options": self.options,
            "propagation": self.propagation,
            "seconds": self.seconds,
            "coverage": None if self.coverage is None else self.coverage.to_dict(),
            "roles": [dataclasses.asdict(role) for role in self.roles],
            "layers": [layer.to_dict() for layer in self.layers],
            "permutations": [item.to_dict() for item in self.permutations],
            "tunings": [dataclasses.asdict(tuning) for tuning in self.tunings],
            "refinement": None if self.refinement is None else dataclasses.asdict(self.refinement),
            "reselection": None if self.reselection is None else dataclasses.asdict(self.reselection),
            "skipped": [dataclasses.asdict(layer) for layer in self.skipped],
        }

    def _repr_html_(self) -> str:
        """Show the means, and the error and gap of every layer, as small tables in a notebook."""
        rows = [
            ("solver", self.solver),
            ("layers", len(self.layers)),
            ("not pruned", len(self.skipped)),
            ("sparsity", self.sparsity),
            ("mean relative error", self.mean_relative_error),
            ("of Wanda's", self.mean_wanda_ratio),
            ("mean relative gap", self.mean_relative_gap),
            ("seconds", float(self.seconds.get("total", 0.0))),
        ]
        lines = [
            ("relative error, layer by layer", [layer.relative_error for layer in self.layers]),
            ("over Wanda's, layer by layer", [layer.wanda_ratio for layer in self.layers]),
        ]
        return piece("PruneReport", rows, lines)

    def __str__(self) -> str:
        """Return a table with one line per layer, the means, what the certificates say, and what was skipped."""
        head = ("layer", "shape", "sparsity", "wanda error", "error", "ratio", "gap", "status", "seconds")
        lines: list[tuple[object, ...]] = []
        for item in self.layers:
            numbers = (item.sparsity, item.wanda_relative_error, item.relative_error, item.wanda_ratio)
            shape = f"{item.rows}x{item.cols}"
            lines.append((item.name, shape, *numbers, item.relative_gap, item.cost.status, item.cost.seconds))
        means = (self.sparsity, self.mean_wanda_relative_error, self.mean_relative_error, self.mean_wanda_ratio)
        lines.append(("mean", "", *means, self.mean_relative_gap, "", sum(item.cost.seconds for item in self.layers)))
        proven = [] if self.options.get("certify") is None else self._certified_lines()
        chosen = Chosen.of(self.layers)
        shares = [*(self._shrinkage_lines() if chosen is None else chosen.lines()), *self._objective_lines()]
        orders = [*shares, *permutation_lines(self.permutations), *self._moved_lines()]
        share = [] if self.coverage is None else [str(self.coverage)]
        less = [f"without {' and '.join(self.left_out)}, which the published method has"] if self.left_out else []
        return "\n".join([*table([head, *lines]), *less, *share, *proven, *orders, *skipped_lines(self.skipped)])

    def _shrinkage_lines(self) -> list[str]:
        """Return what errors are measured on, if that is not the Gram itself."""
        shares = [layer.inputs.shrinkage for layer in self.layers]
        if not any(shares):
            return []
        span = f"{min(shares):.3g}" if min(shares) == max(shares) else f"{min(shares):.3g} to {max(shares):.3g}"
        return [f"errors and bounds are on Grams that are shrunk to their diagonals by {span}"]

    def _objective_lines(self) -> list[str]:
        """Return what errors are of, if that is more than a Gram."""
        alone = self.mean_gram_relative_error
        if alone is None:
            return []
        kinds = " and ".join(sorted({layer.inputs.minimises for layer in self.layers}))
        return [
            f"errors and bounds are of the objective {kinds}; on Grams alone the mean relative error is {alone:.4f}"
        ]

    def _moved_lines(self) -> list[str]:
        """Return the gain of every stage if weights moved: the mask, new weights on it, tuning blocks, refining."""
        moved, lines = [layer for layer in self.layers if layer.loss.kept_objective is not None], []
        if moved:
            wanda, new = (_mean([getattr(item, name) for item in moved]) for name in _RELATIVE_ERRORS)
            kept = _mean([(layer.loss.kept_objective or 0.0) / (layer.loss.dense_energy or 1.0) for layer in moved])
            head = f"mean relative error: {wanda:.4f} Wanda's mask"
            lines.append(f"{head}, {kept:.4f} this mask with weights as they were, {new:.4f} refitted")
        if self.tunings:
            before = _mean([tuning.held_out_before for tuning in self.tunings])
            after = _mean([tuning.held_out_after for tuning in self.tunings])
            count = sum(1 for tuning in self.tunings if tuning.epochs)
            what = "parts of blocks" if any(tuning.part for tuning in self.tunings) else "blocks"
            lines.append(
                f"tuned {what} ({count} of {len(self.tunings)} improved): mean relative error of their outputs on "
                f"held-out windows {before:.4f} before, {after:.4f} after"
            )
        return [*lines, *(str(gain) for gain in (self.reselection, self.refinement) if gain is not None)]

    def _certified_lines(self) -> list[str]:
        """Return a table with one line per role: what the certificates prove."""
        lines: list[tuple[object, ...]] = [("certified", "layers", "proven share", "gap", "gap, estimated")]
        for item in self.roles:
            share, estimate = (
                "-" if value is None else value for value in (item.mean_proven_share, item.mean_estimated_gap)
            )
            lines.append((item.role, item.layers, share, item.mean_relative_gap, estimate))
        return table(lines)


def _mean(values: list[float]) -> float:
    """Return the mean, 0 for no values."""
    return sum(values) / len(values) if values else 0.0


def skipped_lines(skipped: Sequence[SkippedLayer], what: str = "not pruned") -> list[str]:
    """Return a head line, and one line for each skipped layer; many with one reason share a line with their number."""
    reasons: dict[str, list[str]] = {}
    for layer in skipped:
        reasons.setdefault(layer.reason, []).append(layer.name)
    lines = []
    for reason, names in reasons.items():
        shown = names if len(names) <= _MOST_NAMES else [f"{len(names)} layers, {names[0]} to {names[-1]}"]
        lines += [f"  {name}: {reason}" for name in shown]
    return [f"{what} ({len(skipped)}):", *lines] if lines else []


def permutation_lines(permutations: Sequence[Permutation]) -> list[str]:
    """Return how many layers' columns are reordered and what that keeps, and one line for each that is not."""
    if not permutations:
        return []
    applied = [item for item in permutations if item.applied]
    before = _mean([item.kept_before or 0.0 for item in applied])
    after = _mean([item.kept_after or 0.0 for item in applied])
    head = f"columns reordered ({len(applied)} of {len(permutations)} layers)"
    kept = f": an N:M mask keeps {after:.4f} of their saliency, {before:.4f} before" if applied else ""
    errors = [(item.error_before, item.error_after) for item in applied]
    judged = [(before, after) for before, after in errors if before is not None and after is not None]
    if judged:
        means = (_mean([pair[number] for pair in judged]) for number in (1, 0))
        kept += "; a short solve ends at a mean relative error of {:.4f}, {:.4f} before".format(*means)
    left = [SkippedLayer(item.layer, item.reason) for item in permutations if not item.applied]
    return [head + kept, *skipped_lines(left, "columns as they were")]
