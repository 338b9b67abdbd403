"""``compact``: the checkpoint without its zeros (``masks compact``), for storing and sending; no runtime loads it."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from relaxprune.masks.compact import compact, compact_files, restored_tensors

from .packed import own_tensors, rebuilt, torch_logits
from .target import ConvertedModel, Job, Target


class CompactForm(Target):
    """Nonzero values and one bit per entry; every file of the run comes back byte for byte."""

    name = "compact"
    summary = "values without zeros and one bit per entry, to store and send"
    tolerance = 0.0
    explains = "nothing"

    def write(self, job: Job, folder: Path) -> None:
        """Write the compact form of the run's folder."""
        compact(job.run.path, folder)

    def files(self, folder: Path) -> list[Path]:
        """Return the compact files."""
        return compact_files(folder)

    def read(self, folder: Path, device: torch.device) -> ConvertedModel:
        """Rebuild the dense model; the tensors are checked against the checksum of what was compacted."""
        tensors = restored_tensors(folder)
        entries: Counter[torch.dtype] = Counter()
        for tensor in tensors.values():
            entries[tensor.dtype] += tensor.numel() if tensor.is_floating_point() else 0
        model = rebuilt(folder, tensors, entries.most_common(1)[0][0])
        torch.nn.Module.to(model, device)
        return ConvertedModel(
            logits=partial(torch_logits, model),
            weights={},
            memory_bytes=sum(tensor.nbytes for tensor in own_tensors(model).values()),
            kernel="",
            model=model,
        )

    def rounding(self, weight: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(weight, dtype=torch.float64)
