"""How much of each layer a run prunes: as asked, measured on the dense model, or as a record has it."""

from __future__ import annotations

from relaxprune.options.target import Decided

from .block_record import AllocationRecorder, BlockRecorder
from .outcome import Outcome
from .plan import Plan
from .sharing.counts import decide
from .sharing.dense_grams import DenseModel


def decided_counts(plan: Plan, dense: DenseModel, recorder: BlockRecorder | None, outcome: Outcome) -> Decided:
    """Decide how much each layer is pruned: as asked, by a pass over the dense model, or as the recorder has it."""
    target = plan.request.target
    if not target.sharing.measures:
        return Decided(target)
    keeper = recorder if isinstance(recorder, AllocationRecorder) else None
    counts = None if keeper is None else keeper.load_allocation()
    if counts is None:
        with outcome.timed("allocate"):
            counts = decide(target.sharing, target.sparsity or 0.0, dense, plan.request.options.seed)
        if keeper is not None:
            keeper.save_allocation(counts)
    return Decided(target, counts)
