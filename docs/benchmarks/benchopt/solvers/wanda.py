"""Wanda in numpy: what a solver of somebody else looks like. It imports nothing of relaxprune."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from benchopt import BaseSolver


class Solver(BaseSolver):
    """Keep the weights of largest |W_ij| sqrt(G_jj) in every group, or in every row."""

    name = "Wanda"
    sampling_strategy = "run_once"
    references: ClassVar[list[str]] = [
        "Sun et al., A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695"
    ]

    def skip(self, weight: np.ndarray, gram: np.ndarray, polytope: dict[str, Any], problem: Any) -> tuple[bool, Any]:
        """Say which sets of masks it does not know."""
        known = polytope["kind"] == "nm" or (polytope["kind"] == "ksparse" and polytope["per"] == "row")
        return (False, None) if known else (True, f"no masks of kind {polytope['kind']}")

    def set_objective(self, weight: np.ndarray, gram: np.ndarray, polytope: dict[str, Any], problem: Any) -> None:
        """Take the arrays and the set of masks, described as in docs/problem-file.md."""
        self.score = np.abs(weight) * np.sqrt(np.diag(gram))
        self.keep, self.group = polytope["keep"], polytope.get("group", weight.shape[1])

    def run(self, _: Any) -> None:
        """Rank the weights of each group."""
        groups = self.score.reshape(-1, self.group)
        order = np.argsort(-groups, axis=1, kind="stable")
        kept = np.zeros(groups.shape, dtype=bool)
        np.put_along_axis(kept, order[:, : self.keep], True, axis=1)
        self.mask = kept.reshape(self.score.shape)

    def get_result(self) -> dict[str, Any]:
        """Return the mask, (rows, cols) bool, True = kept."""
        return {"mask": self.mask}
