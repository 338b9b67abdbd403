"""One layer: from its weight and Gram to its mask and its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relaxprune.inputs.gathering import Gathered
from relaxprune.models.layers import PrunableLayer
from relaxprune.options.prune_options import PruneOptions, Target
from relaxprune.problems import Gram, MaskProblem, ReconstructionProblem
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes import Polytope
from relaxprune.problems.problem import relative_error
from relaxprune.solvers import Solver
from relaxprune.solving.solution import Solution
from relaxprune.solving.solving import solve, start_mask

from ..certificates import Certificate
from .layer_certificates import certificate_of, estimated_gap, proven_share
from .prune_report import LayerReport


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What is known of a layer's inputs.

    Attributes:
        gram: their Gram, shared by all layers that read them.
        gathered: what it was made of.
        calls: the most calls of the layer in one forward pass.
        leader: name of the first of the layers that share the Gram.
    """

    gram: Gram
    gathered: Gathered
    calls: int
    leader: str


# A certificate, and the set of masks that it is for.
Proven = tuple[Certificate, Polytope]


@dataclass(frozen=True, eq=False)
class SolvedLayer:
    """What became of one layer.

    Attributes:
        mask: (rows, cols) bool on the CPU, True = kept.
        report: its report.
        proof: its certificate with its set of masks, if one was asked for.
        weight: (rows, cols) new values where weights may move, else None.
    """

    mask: Tensor
    report: LayerReport
    proof: Proven | None
    weight: Tensor | None


@dataclass(frozen=True, eq=False)
class MaskSolver:
    """Solves layers, all with the same target, solver and effort."""

    target: Target
    solver: Solver
    options: PruneOptions

    def solve(self, layer: PrunableLayer, inputs: LayerInputs, block: int) -> SolvedLayer:
        """Find the mask of one layer, and what Wanda's mask costs on the same Gram.

        Where the solver broke down the mask is the one that it started from, polished, and the report's status says so:
        one layer must not end a run.

        Raises:
            RelaxPruneError: the problem cannot be solved as asked; the message names the layer.
        """
        matrix = inputs.gram.matrix
        weight = layer.matrix().to(matrix.device)
        memory = self.options.memory_bytes
        try:
            polytope = self.target.polytope_of(layer.name, layer.shape)
            if self.options.moves:
                # In the weight's own dtype: the new values are judged as they will be written.
                read = inputs.gathered
                whole = ReconstructionProblem(
                    weight,
                    inputs.gram,
                    polytope,
                    cross=read.cross,
                    dense_gram=read.dense_gram,
                    damping=self.options.ridge,
                )
                solution, certificate = self._solution(whole), None
                judged = _refitted(whole, memory, 0.0 if read.cross is None else self.options.correct)
            else:
                problem = MaskProblem(weight.to(matrix.dtype), inputs.gram, polytope)
                solution = self._solution(problem)
                certificate = certificate_of(problem, solution, self.options)
                judged = (*_kept(problem, solution, memory), None, None)
        except RelaxPruneError as error:
            raise RelaxPruneError(f"layer {layer.name!r} in block {block}: {error}") from error
        mask = solution.mask.cpu()
        rows, cols = layer.shape
        report = LayerReport(
            name=layer.name,
            parameter=layer.parameter,
            block=block,
            kind=layer.kind,
            rows=rows,
            cols=cols,
            requested_sparsity=self.target.requested_sparsity((rows, cols), layer.name),
            sparsity=1 - int(mask.sum()) / mask.numel(),
            tokens=inputs.gathered.tokens,
            token_weight=inputs.gathered.token_weight,
            shrinkage=inputs.gathered.shrinkage,
            calls=inputs.calls,
            gram=inputs.leader,
            **_judged(solution, *judged, certificate),
        )
        proof = None if certificate is None else (certificate, polytope)
        return SolvedLayer(mask, report, proof, solution.weight)

    def _solution(self, problem: MaskProblem | ReconstructionProblem) -> Solution:
        """Solve with the options of the run."""
        return solve(problem, self.solver, options=self.options, throw=False)


def _kept(problem: MaskProblem, solution: Solution, memory_bytes: int) -> tuple[float, float]:
    """Return the energy of a layer and what Wanda's mask loses of it, where weights stay."""
    mask = start_mask(problem, "wanda", memory_bytes)
    same = torch.equal(mask, solution.mask)
    return problem.dense_energy, solution.objective if same else problem.objective(mask, memory_bytes)


def _refitted(
    problem: ReconstructionProblem, memory_bytes: int, corrected: float
) -> tuple[float, float, float | None, float | None]:
    """Return the same where they move, with Wanda's weights as they were, and the share corrected and the residual."""
    mask = start_mask(MaskProblem(problem.weight, problem.prepared, problem.polytope), "wanda", memory_bytes)
    wanda = problem.objective(torch.where(mask, problem.weight, 0.0))
    return problem.reference, wanda, corrected, float(problem.residual.sum())


def _judged(
    solution: Solution,
    energy: float,
    wanda: float,
    corrected: float | None,
    residual: float | None,
    certificate: Certificate | None,
) -> dict[str, Any]:
    """Return the part of a layer's report that is known once the mask is."""
    proof = solution.certificate if certificate is None else certificate
    return {
        "dense_energy": energy,
        "wanda_objective": wanda,
        "objective": solution.objective,
        "kept_objective": solution.kept_objective,
        "corrected": corrected,
        "residual": residual,
        "wanda_relative_error": relative_error(wanda, energy),
        "relative_error": relative_error(solution.objective, energy),
        "relaxed_objective": solution.relaxed_objective,
        "unrounded_objective": solution.unrounded_objective,
        "rounded_objective": solution.rounded_objective,
        "lower_bound": proof.lower_bound,
        "gap": proof.gap,
        "relative_gap": proof.relative_gap,
        "certificate": None if certificate is None else certificate.method,
        "certified_rows": None if certificate is None else certificate.rows_covered,
        "certificate_seconds": None if certificate is None else certificate.seconds,
        "estimated_gap": estimated_gap(certificate),
        "proven_share": proven_share(wanda, solution.objective, proof.lower_bound),
        "solver": solution.solver,
        "polish": solution.polish,
        "status": solution.status.name,
        "products": solution.stats.products,
        "iterations": solution.stats.iterations,
        "seconds": solution.stats.seconds,
    }
