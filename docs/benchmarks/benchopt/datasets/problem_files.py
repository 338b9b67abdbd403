"""Layers from problem files, which any program can write (docs/problem-file.md): ``problems/`` or a path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from benchopt import BaseDataset

from relaxprune import RelaxPruneError
from relaxprune.options import Target
from relaxprune.runs import read_problem_file

FOLDER = Path(__file__).resolve().parents[1] / "problems"


class Dataset(BaseDataset):
    """One problem file; ``pattern`` or ``sparsity`` says which masks are allowed if the file does not."""

    name = "Problem-file"
    requirements: ClassVar[list[str]] = ["pip::relaxprune"]
    parameters: ClassVar[dict[str, Any]] = {
        "path": sorted(file.name for file in FOLDER.glob("*.safetensors")),
        "pattern": [None],
        "sparsity": [None],
    }

    def get_data(self) -> dict[str, Any]:
        """Return the layer."""
        layer = read_problem_file(FOLDER / self.path)  # a path of its own if it is absolute
        if self.pattern is not None or self.sparsity is not None:
            rows, cols = layer.weight.shape
            asked = Target(self.sparsity, self.pattern)
            layer = replace(layer, polytope=asked.polytope_of("weight", (rows, cols)))
        if layer.polytope is None:
            raise RelaxPruneError(f"{self.path} states no set of masks: give pattern or sparsity")
        return {"layer": layer}
