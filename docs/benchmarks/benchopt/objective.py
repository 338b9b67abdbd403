"""Layer mask selection: of a layer's weights, which to keep, judged by the error and by a proven bound."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from benchopt import BaseObjective

from relaxprune import RelaxPruneError, certify, solve
from relaxprune.runs import LayerProblem


class Objective(BaseObjective):
    """The mean squared change of a layer's output, over that of pruning everything; less is better.

    The lower bound holds for every mask of the set. It is proven once for a problem, from Wanda's mask and not from a
    solver's own claim, so that all solvers are compared with the same one.
    """

    name = "Layer mask selection"
    url = "https://relaxprune.example/benchmarks/benchopt/"
    min_benchopt_version = "1.10"
    requirements: ClassVar[list[str]] = ["pip::relaxprune"]
    sampling_strategy = "iteration"
    test_dataset_name = "Simulated"
    parameters: ClassVar[dict[str, Any]] = {"bound": ["diagonal"]}

    def set_data(self, layer: LayerProblem) -> None:
        """Take one layer with its set of masks.

        Raises:
            RelaxPruneError: the layer minimises more than its Gram's objective, of which solvers are given one matrix.
        """
        objective = layer.objective()
        if not objective.plain:
            raise RelaxPruneError(f"this benchmark compares masks by one Gram, got a problem file with {objective}")
        self.problem = layer.mask_problem()
        self.proof = certify(self.problem, solve(self.problem, "wanda").mask, self.bound)

    def get_objective(self) -> dict[str, Any]:
        """Return what a solver is given: arrays, the set as ``docs/problem-file.md`` describes it, and the problem."""
        return {
            "weight": self.problem.weight.double().numpy(),
            "gram": self.problem.gram.double().numpy(),
            "polytope": self.problem.polytope.to_dict(),
            "problem": self.problem,
        }

    def evaluate_result(self, mask: np.ndarray) -> dict[str, float]:
        """Judge a mask, (rows, cols) bool, True = kept, in float64; one outside of the set counts as worthless."""
        given = np.asarray(mask)
        kept, bound = torch.from_numpy(given.astype(bool)), self.proof.lower_bound
        fits = bool(((given == 0) | (given == 1)).all()) and self.problem.polytope.contains(kept)
        objective = self.problem.objective(kept) if fits else float("nan")
        return {
            "value": objective / self.problem.reference if self.problem.reference else objective,
            "objective": objective,
            "lower_bound": bound,
            "relative_gap": (objective - bound) / objective if objective else 0.0,
            "sparsity": 1 - float(kept.double().mean()),
        }

    def get_one_result(self) -> dict[str, np.ndarray]:
        """Return a mask of the set: the one that keeps the largest weights."""
        return {"mask": self.problem.polytope.round(self.problem.weight.abs()).numpy()}
