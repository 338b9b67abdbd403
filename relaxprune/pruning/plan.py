"""What a pruning run will do, decided and checked before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from relaxprune.costs.memory import RunBytes
from relaxprune.costs.planned_layer import PlannedLayer
from relaxprune.costs.residency import need
from relaxprune.models.blocks import BlockList
from relaxprune.models.layers import PrunableLayer, SkippedLayer
from relaxprune.options.allocation import MEASURED
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency import Residency
from relaxprune.support.tables import table

from .coverage import MatrixCount
from .layer_certificates import certificates_in_words
from .prune_report import skipped_lines
from .request import PruneRequest


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of a run on this machine.

    Attributes:
        seconds: by stage, as in ``PruneReport.seconds``; empty if ``unknown`` says why.
        peak_bytes: the largest resident size of the process.
        unknown: why the time is not predicted, or "".
    """

    seconds: dict[str, float]
    peak_bytes: int
    unknown: str = ""

    @property
    def total(self) -> float | None:
        """Seconds of the whole run, or None if they are not predicted."""
        return None if self.unknown else sum(self.seconds.values())

    def __str__(self) -> str:
        """Say it in one line."""
        memory = f"peak memory {self.peak_bytes / 2**30:.2f} GiB"
        if self.total is None:
            return f"predicted: {memory}; time not predicted: {self.unknown}"
        stages = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in self.seconds.items())
        return f"predicted: {self.total:.0f} s ({stages}), {memory}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Everything decided about a run before it starts, for one model. ``str()`` gives a table.

    Attributes:
        request: how much is pruned, by which solver, with which options.
        model: the model that the plan is for.
        weights: the weights that will be pruned, if a batch reaches them.
        blocks: the blocks that they lie in.
        layers: the shapes and counts of these weights.
        skipped: every other matrix, with a reason.
        matrices: how many matrices and weights there are to prune.
        memory: estimate of what a run holds in memory.
        residency: where weights and hidden states live.
        prediction: time and peak memory on this machine, or None if nothing was tried.
    """

    request: PruneRequest
    model: nn.Module = field(repr=False)
    weights: list[PrunableLayer] = field(repr=False)
    blocks: BlockList = field(repr=False)
    layers: list[PlannedLayer]
    skipped: list[SkippedLayer]
    matrices: MatrixCount
    memory: RunBytes
    residency: Residency = field(default_factory=Residency)
    prediction: Prediction | None = None

    @property
    def model_bytes(self) -> int:
        """Size of the model."""
        return self.memory.model

    @property
    def added_bytes(self) -> int:
        """Estimate of what a run holds in addition."""
        return self.memory.added

    @property
    def estimated_bytes(self) -> int:
        """Estimated memory of a run."""
        return need(self.memory, self.residency, one_memory=self.on_cpu).device_bytes

    @property
    def on_cpu(self) -> bool:
        """Whether the model computes on the CPU, so that there is one memory."""
        return self.weights[0].weight.device.type == "cpu"

    @property
    def polytope(self) -> dict[str, Any]:
        """What was asked for, as in ``Target.to_dict``."""
        return self.request.target.to_dict()

    @property
    def certificates(self) -> str:
        """The certificates of the layers in words; "" if there is only the solver's own bound."""
        return certificates_in_words(self.request.options, self.request.solver)

    def check_model(self, model: nn.Module) -> None:
        """Raise RelaxPruneError unless the plan was made for this model, as it is."""
        if model is not self.model:
            raise RelaxPruneError(
                f"plan must be one that plan_model has made for this model, got one for another "
                f"{type(self.model).__name__}"
            )
        held = {id(parameter) for parameter in model.parameters()}
        gone = [layer.name for layer in self.weights if id(layer.weight) not in held]
        if gone:
            raise RelaxPruneError(
                f"plan must be made after the model's parameters were last replaced, got one for an earlier weight of "
                f"layer {gone[0]!r}: plan again"
            )

    def without(self, reasons: Mapping[str, str]) -> Plan:
        """Return the plan without some layers, which are listed with their reasons.

        Raises:
            RelaxPruneError: no layer is left.
        """
        if reasons and all(layer.name in reasons for layer in self.weights):
            name, reason = next(iter(reasons.items()))
            raise RelaxPruneError(f"model must have a layer to prune, got none: {name!r} is left alone ({reason})")
        return replace(
            self,
            weights=[layer for layer in self.weights if layer.name not in reasons],
            layers=[layer for layer in self.layers if layer.name not in reasons],
            skipped=[*self.skipped, *(SkippedLayer(name, reason) for name, reason in reasons.items())],
        )

    def __str__(self) -> str:
        """Return one line per layer, the total, the certificates, and what is skipped."""
        lines: list[tuple[object, ...]] = [("layer", "kind", "block", "rows", "cols", "keep", "sparsity")]
        for layer in self.layers:
            block = "-" if layer.block is None else layer.block
            sparsity = 1 - layer.keep / (layer.rows * layer.cols)
            lines.append((layer.name, layer.kind, block, layer.rows, layer.cols, layer.keep, sparsity))
        entries = sum(layer.rows * layer.cols for layer in self.layers)
        total = (
            f"{len(self.layers)} layers, {entries:,} weights, about {self.estimated_bytes / 2**30:.2f} GiB of memory"
        )
        shares = []
        if self.polytope.get("allocation") in MEASURED:
            shares = [f"shares by a pass over the dense model ({self.polytope['allocation']}); above, all alike"]
        options = self.request.options
        moves = [f"kept weights get new values, damping {options.ridge:g}"] if options.moves else []
        proofs = [f"certificates: {self.certificates}"] if self.certificates else []
        places = [str(self.residency)] if self.residency != Residency() else []
        predicted = [] if self.prediction is None else [str(self.prediction)]
        return "\n".join(
            [*table(lines), total, *shares, *moves, *places, *predicted, *proofs, *skipped_lines(self.skipped)]
        )
