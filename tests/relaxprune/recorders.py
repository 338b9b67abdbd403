"""Recorders that keep a run's blocks in memory."""

from __future__ import annotations

from collections.abc import Mapping

from relaxprune.pruning.block_record import BlockRecord, RefinementRecord


class BlockMemory:
    """Keeps finished blocks, and which ones were solved."""

    def __init__(self, records: Mapping[int, BlockRecord] | None = None) -> None:
        self.records = dict(records or {})
        self.solved: list[int] = []

    def load(self, block_index: int) -> BlockRecord | None:
        return self.records.get(block_index)

    def save(self, block_index: int, record: BlockRecord) -> None:
        self.solved.append(block_index)
        self.records[block_index] = record


class RunMemory(BlockMemory):
    """Keeps the allocation too."""

    counts: dict[str, int] | None = None

    def load_allocation(self) -> dict[str, int] | None:
        return self.counts

    def save_allocation(self, counts: dict[str, int]) -> None:
        self.counts = counts


class RefinedMemory(BlockMemory):
    """Keeps the refinement of the whole model too, and how often it was made."""

    refinement: RefinementRecord | None = None
    refined = 0

    def load_refinement(self) -> RefinementRecord | None:
        return self.refinement

    def save_refinement(self, record: RefinementRecord) -> None:
        self.refinement = record
        self.refined += 1
