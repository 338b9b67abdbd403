"""What processes that share a run must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from relaxprune.inputs.batches import Batch
from relaxprune.inputs.parts import Parts
from relaxprune.inputs.tree import flatten
from relaxprune.residency.store import store_of
from relaxprune.support.tensor_bits import checksum

from .plan import Plan


def common_facts(plan: Plan, batches: Sequence[Batch], parts: Parts) -> dict[str, Any]:
    """Return everything that the result of a run depends on, as JSON values; of tensors, checksums.

    Args:
        plan: of the run.
        batches: all calibration batches.
        parts: which tokens are summed apart.
    """
    read = flatten([(batch.args, batch.kwargs, batch.kept, batch.decoder_kept) for batch in batches])[0]
    store = store_of(plan.model)
    return {
        "model": checksum((name, store.values(weight)) for name, weight in plan.model.named_parameters()),
        "calibration text": [checksum((str(number), tensor) for number, tensor in enumerate(read)), repr(parts)],
        "options": repr(plan.request),
        "layers to prune": [layer.name for layer in plan.layers],
        "threads (--threads)": torch.get_num_threads(),
        "version of torch": str(torch.__version__),
    }
