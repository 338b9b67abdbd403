"""What is done with one layer: its problem from a file's tensors, and the proof and the facts of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from relaxprune.certificates import Certificate, certify, certify_weights
from relaxprune.certificates.limits import check_enumerable, check_limits
from relaxprune.options.target import Target
from relaxprune.problems import MaskProblem, ReconstructionProblem
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes import Polytope
from relaxprune.pruning.request import PruneRequest
from relaxprune.runs.problem_file import LayerProblem
from relaxprune.solving.solution import Solution

FACTS_VERSION = 1

LayerAsked = MaskProblem | ReconstructionProblem


def problem_of(layer: LayerProblem, request: PruneRequest) -> LayerAsked:
    """Return the problem of a layer: of its mask, or of its weights as well where the request moves them.

    Raises:
        RelaxPruneError: tensors that do not fit each other or the target, or that hold no sensible numbers.
    """
    if not request.options.moves:
        return mask_problem_of(layer, request.target)
    objective = layer.objective()
    if not objective.plain:
        raise RelaxPruneError(
            f"weights that move need one Gram for all rows and nothing beside it, got {objective}: let them stay, or "
            "give every group of rows a file of its own"
        )
    return ReconstructionProblem(
        layer.weight,
        layer.gram,
        _polytope(layer, request.target),
        cross=layer.cross,
        dense_gram=layer.dense_gram,
        damping=request.options.ridge,
    )


def mask_problem_of(layer: LayerProblem, target: Target) -> MaskProblem:
    """Return the problem of a layer whose weights stay; raises as ``problem_of`` does."""
    return layer.mask_problem(_polytope(layer, target))


def _polytope(layer: LayerProblem, target: Target) -> Polytope:
    """Return the set of masks of a layer."""
    rows, cols = layer.weight.shape
    return target.polytope_of("weight", (rows, cols))


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The certificate that is asked for.

    Attributes:
        method: None for the one that the solver's own work gives.
        rows: how many rows "diagonal" and "sdp" draw, None for all.
        time_limit_s: seconds for "sdp", or None.
    """

    method: str | None = None
    rows: int | None = None
    time_limit_s: float | None = None

    def check_for(self, problem: LayerAsked) -> None:
        """Raise RelaxPruneError for what is impossible for a problem, before any work."""
        if self.method is not None:
            check_limits(self.method, self.rows, self.time_limit_s)
        self.check_moves(problem.moves_weights)
        if self.method == "exact":
            check_enumerable(problem.mask_problem)

    def check_moves(self, moves_weights: bool) -> None:
        """Raise RelaxPruneError for a method that is for weights that stay."""
        if moves_weights and self.method not in (None, "exact"):
            raise RelaxPruneError(f"certify must be exact with weights that move, got {self.method!r}; leave it out")

    def of(self, problem: LayerAsked, solution: Solution, seed: int) -> Certificate:
        """Return the certificate of a solution."""
        if self.method is None:
            return solution.certificate
        if isinstance(problem, ReconstructionProblem):
            assert solution.weight is not None
            return certify_weights(problem, solution.weight, self.method)
        return certify(problem, solution, self.method, rows=self.rows, time_limit_s=self.time_limit_s, seed=seed)


def facts_of(problem: LayerAsked, solution: Solution, proven: Certificate, seed: int) -> dict[str, Any]:
    """Return the facts of a solution as plain JSON values."""
    from relaxprune import __version__

    notes = proven.notes
    estimate = notes.get("estimate")  # of drawn rows
    return {
        "schema_version": FACTS_VERSION,
        "relaxprune": __version__,
        "polytope": problem.polytope.to_dict(),
        "sparsity": 1.0 - float(solution.mask.double().mean()),
        "objective": solution.objective,
        "kept_objective": solution.kept_objective,
        "dense_energy": problem.reference,
        "damping": problem.damping if isinstance(problem, ReconstructionProblem) else None,
        "relative_error": solution.relative_error,
        "relaxed_objective": solution.relaxed_objective,
        "unrounded_objective": solution.unrounded_objective,
        "lower_bound": proven.lower_bound,
        "gap": proven.gap,
        "relative_gap": proven.relative_gap,
        "certificate": proven.method,
        "certified_rows": notes.get("rows_covered"),
        "certificate_seconds": proven.seconds,
        "estimated_bound": None if estimate is None else estimate["lower_bound"],
        "block_objective": solution.block_objective.tolist(),
        "block_lower_bound": proven.block_lower_bound.tolist(),
        "status": solution.status.name,
        "advice": solution.status.value,
        "solver": solution.solver,
        "options": solution.options,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "seconds": solution.stats.seconds,
        "stats": solution.stats.to_dict(),
    }
