"""Layers with correlated inputs, drawn at random: x_j and x_k correlate by decay^|j - k|."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from benchopt import BaseDataset

from relaxprune.options import Target
from relaxprune.runs import LayerProblem


class Dataset(BaseDataset):
    """A Gaussian weight, and the Gram of Gaussian inputs whose columns have scales of their own."""

    name = "Simulated"
    requirements: ClassVar[list[str]] = ["pip::relaxprune"]
    parameters: ClassVar[dict[str, Any]] = {
        "rows, cols": [(32, 128)],
        "pattern": ["1:2", "2:4"],
        "decay": [0.9],
    }
    test_parameters: ClassVar[dict[str, Any]] = {"rows, cols": [(4, 16)]}

    def get_data(self) -> dict[str, Any]:
        """Return the layer."""
        generator = torch.Generator().manual_seed(self.get_seed(use_dataset=True) % 2**31)
        places = torch.arange(self.cols, dtype=torch.float64)
        scales = torch.rand(self.cols, generator=generator, dtype=torch.float64) + 0.5
        gram = self.decay ** (places[:, None] - places).abs() * scales[:, None] * scales
        weight = torch.randn(self.rows, self.cols, generator=generator, dtype=torch.float64)
        polytope = Target(pattern=self.pattern).polytope_of("weight", (self.rows, self.cols))
        return {"layer": LayerProblem(weight, gram, polytope=polytope)}
