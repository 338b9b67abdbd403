"""The recorder of a run that several ranks share: the leader has it, the others hear what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relaxprune.ranks.ranks import Ranks

from .block_record import (
    AllocationRecorder,
    BlockRecord,
    BlockRecorder,
    CertificateRecorder,
    RefinementRecord,
    RefinementRecorder,
)

if TYPE_CHECKING:
    from relaxprune.certificates import Certificate
    from relaxprune.problems import MaskProblem


@dataclass(frozen=True, eq=False)
class SharedRecorder:
    """Loads on the leader for all ranks, and saves on the leader alone.

    Attributes:
        recorder: the leader's, None if it keeps nothing, and on other ranks.
        ranks: of the run.
    """

    recorder: BlockRecorder | None
    ranks: Ranks

    def load(self, block_index: int) -> BlockRecord | None:
        """Return the record of a finished block, None if it has to be solved."""

        def told() -> Any:
            record = None if self.recorder is None else self.recorder.load(block_index)
            if record is None:
                return None
            return {"facts": record.facts(), "masks": record.masks, "weights": record.weights}

        found = self.ranks.from_leader(told)
        return None if found is None else BlockRecord.of(found["facts"], found["masks"], found["weights"])

    def save(self, block_index: int, record: BlockRecord) -> None:
        """Keep the record of a block that was just finished."""
        if self.recorder is not None:
            self.recorder.save(block_index, record)

    def load_allocation(self) -> dict[str, int] | None:
        """Return how the sparsity is shared among layers, None if it has to be decided."""
        keeper = self.recorder
        return self.ranks.from_leader(
            lambda: keeper.load_allocation() if isinstance(keeper, AllocationRecorder) else None
        )

    def save_allocation(self, counts: dict[str, int]) -> None:
        """Keep what was decided."""
        if isinstance(self.recorder, AllocationRecorder):
            self.recorder.save_allocation(counts)

    def load_refinement(self) -> RefinementRecord | None:
        """Return the refinement of the blocks that are kept, None if it has to be made."""
        keeper = self.recorder

        def told() -> Any:
            record = keeper.load_refinement() if isinstance(keeper, RefinementRecorder) else None
            return (
                None if record is None else {"facts": record.facts(), "weights": record.weights, "masks": record.masks}
            )

        found = self.ranks.from_leader(told)
        return None if found is None else RefinementRecord.of(found["facts"], found["weights"], found["masks"])

    def save_refinement(self, record: RefinementRecord) -> None:
        """Keep the refinement that was just made."""
        if isinstance(self.recorder, RefinementRecorder):
            self.recorder.save_refinement(record)

    def save_certificate(self, parameter: str, certificate: Certificate, problem: MaskProblem) -> None:
        """Keep the certificate of a layer."""
        if isinstance(self.recorder, CertificateRecorder):
            self.recorder.save_certificate(parameter, certificate, problem)


def shared(recorder: BlockRecorder | None, ranks: Ranks) -> BlockRecorder | None:
    """Return the recorder of a run that these ranks share."""
    return recorder if ranks.alone else SharedRecorder(recorder if ranks.leader else None, ranks)
