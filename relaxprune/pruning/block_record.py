"""Keeping the finished blocks of a run, so that it can be continued."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .channels.permutation import Permutation
from .layer_report import LayerReport
from .tuning.gains import BlockTuning, Refinement, Reselection

if TYPE_CHECKING:
    from torch import Tensor

    from relaxprune.problems import MaskProblem

    from ..certificates import Certificate


@dataclass(frozen=True)
class BlockRecord:
    """All that is needed to redo a finished block without solving.

    Attributes:
        masks: parameter name -> (rows, cols) bool, True = kept, on the CPU; (rows, cols) = (outputs, inputs) also
            if the module stores the transpose.
        layers: one report for each mask.
        seconds: stage -> seconds spent until now, as in ``PruneReport``; a run that is continued counts on from them.
        permutations: the orders of channels that the masks are for; empty without ``permute``.
        weights: parameter name -> (rows, cols) in the model's dtype, on the CPU: new values of weights that moved.
        tunings: the gains of tuning the block as a whole, or part by part; empty if it was not tuned.
    """

    masks: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    layers: list[LayerReport] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    permutations: list[Permutation] = dataclasses.field(default_factory=list)
    weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    tunings: list[BlockTuning] = dataclasses.field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON values."""
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "permutations": [item.to_dict() for item in self.permutations],
            "seconds": self.seconds,
            "tunings": [dataclasses.asdict(tuning) for tuning in self.tunings],
        }

    @classmethod
    def of(cls, facts: dict[str, Any], masks: dict[str, Tensor], weights: dict[str, Tensor]) -> BlockRecord:
        """Undo ``facts``, with the tensors beside them.

        Raises:
            RelaxPruneError: a report or a permutation is not whole.
            TypeError: a tuning is not.
        """
        layers = [LayerReport.from_dict(layer) for layer in facts["layers"]]
        permutations = [Permutation.from_dict(item) for item in facts["permutations"]]
        tunings = [BlockTuning(**tuning) for tuning in facts["tunings"]]
        return cls(masks, layers, facts["seconds"], permutations, weights, tunings)


@dataclass(frozen=True)
class RefinementRecord:
    """All that is needed to redo what was done to the whole model once all blocks were finished.

    Attributes:
        refinement: the gain of refining it, None if it was not refined.
        weights: parameter name -> (rows, cols) in the model's dtype, on the CPU: the values of all pruned layers;
            empty if kept weights have the values that they had before they were pruned.
        seconds: as in ``BlockRecord``.
        reselection: the gain of choosing masks again, None if they were not.
        masks: parameter name -> (rows, cols) bool, on the CPU: the masks of all pruned layers; empty like the one
            before.
    """

    refinement: Refinement | None
    weights: dict[str, Tensor]
    seconds: dict[str, float]
    reselection: Reselection | None = None
    masks: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def layers(self) -> set[str]:
        """The names of the parameters that it is of."""
        return {*self.weights, *self.masks}

    def facts(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON values; without a reselection where there is none."""
        facts = {"refinement": _values(self.refinement), "seconds": self.seconds}
        return facts if self.reselection is None else facts | {"reselection": _values(self.reselection)}

    @classmethod
    def of(cls, facts: Mapping[str, Any], weights: dict[str, Tensor], masks: dict[str, Tensor]) -> RefinementRecord:
        """Undo ``facts``, with the tensors beside them."""
        refined, chosen = facts.get("refinement"), facts.get("reselection")
        return cls(
            refinement=None if refined is None else Refinement(**refined),
            weights=weights,
            seconds=facts["seconds"],
            reselection=None if chosen is None else Reselection(**chosen),
            masks=masks,
        )


def _values(gain: Refinement | Reselection | None) -> dict[str, Any] | None:
    """Return a gain as JSON values."""
    return None if gain is None else dataclasses.asdict(gain)


class BlockRecorder(Protocol):
    """Keeps finished blocks, so that an interrupted run can be continued to the same result."""

    def load(self, block_index: int) -> BlockRecord | None:
        """Return the record of a finished block, None if it has to be solved."""

    def save(self, block_index: int, record: BlockRecord) -> None:
        """Keep the record of a block that was just finished."""


@runtime_checkable
class AllocationRecorder(BlockRecorder, Protocol):
    """Also keeps how a model's sparsity is shared among its layers, which is decided before the first block."""

    def load_allocation(self) -> dict[str, int] | None:
        """Return layer -> entries pruned of every row, None if it has to be decided."""

    def save_allocation(self, counts: dict[str, int]) -> None:
        """Keep what was decided."""


@runtime_checkable
class RefinementRecorder(BlockRecorder, Protocol):
    """Also keeps what was done to the whole model, which follows the last block; a block saved later discards it."""

    def load_refinement(self) -> RefinementRecord | None:
        """Return the refinement of the blocks that are kept, None if it has to be made."""

    def save_refinement(self, record: RefinementRecord) -> None:
        """Keep the refinement that was just made."""


@runtime_checkable
class CertificateRecorder(BlockRecorder, Protocol):
    """Also keeps certificates; those of a block are saved before the block."""

    def save_certificate(self, parameter: str, certificate: Certificate, problem: MaskProblem) -> None:
        """Keep the certificate of a layer, by its parameter's name, with the problem that it is for."""
