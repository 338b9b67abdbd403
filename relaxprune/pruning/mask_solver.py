"""One layer: from its weight and Gram to its mask and its report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relaxprune.certificates import MaskCertificate
from relaxprune.inputs.layer_grams import LayerGram
from relaxprune.inputs.shrinkage import ShrinkageChoice
from relaxprune.models.layers import PrunableLayer
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.target import Decided
from relaxprune.problems import Gram, MaskProblem, Objective, ReconstructionProblem
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes import Polytope
from relaxprune.ranks.ranks import ALONE, Ranks
from relaxprune.solvers import Run, Solver
from relaxprune.solving.solution import Solution
from relaxprune.solving.solving import solve, start_mask

from .layer_certificates import certificate_of
from .layer_judging import NO_BOUND, bound_of, cost_of, gram_error, loss_of, moved
from .layer_judging import wanda_objective as wanda_objective
from .layer_report import BoundReport, InputReport, LayerReport, LossReport
from .objectives.terms import PLAIN, LossTerms
from .source_zeros import keep_zeros, pruning_zeros, staying_zeros


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """The inputs of a layer.

    Attributes:
        gram: their Gram, shared by all layers with these inputs.
        read: the sums that it was made of.
        calls: the most calls of the layer in one forward pass.
        leader: name of the first of the layers that share the Gram.
        terms: what the layer's objective has beside the Gram.
    """

    gram: Gram
    read: LayerGram
    calls: int
    leader: str
    terms: LossTerms = PLAIN

    def report(self) -> InputReport:
        """Return them as numbers."""
        read = self.read
        return InputReport(
            tokens=read.tokens,
            token_weight=read.token_weight,
            shrinkage=read.shrinkage,
            calls=self.calls,
            gram=self.leader,
            minimises=self.terms.kind,
            **_selected(read.choice),
        )

    def objective(self, damping: float = 0.0) -> Objective:
        """Return what the layer minimises, its Grams damped by a share of their scale."""
        return self.terms.objective(self.gram, damping)


def _selected(choice: ShrinkageChoice | None) -> dict[str, Any]:
    """Return how the shrinkage was chosen, as fields of ``InputReport``."""
    if choice is None:
        return {}
    return {
        "candidates": list(choice.candidates),
        "candidate_errors": list(choice.errors),
        "held_out_errors": {name: list(errors) for name, errors in choice.held_out.items()},
    }


# A certificate, and the problem that it is for.
Proven = tuple[MaskCertificate, MaskProblem]


@dataclass(frozen=True, eq=False)
class _Judged:
    """A solution, what the layer loses, the bound, and the proof that was asked for."""

    solution: Solution
    loss: LossReport
    bound: BoundReport
    proof: Proven | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class SolvedLayer:
    """One solved layer.

    Attributes:
        layer: the layer.
        mask: (rows, cols) bool on the CPU, True = kept.
        report: its report.
        proof: its certificate, and the problem that it is for, if one was asked for.
        weight: (rows, cols) new values if weights may move, else None.
        support: (rows, cols) bool on the CPU, the kept entries that may move: ``mask``, less zeros that stay zero.
    """

    layer: PrunableLayer
    mask: Tensor
    report: LayerReport
    proof: Proven | None
    weight: Tensor | None
    support: Tensor


@dataclass(frozen=True, eq=False)
class MaskSolver:
    """Solves layers with one solver and one set of options, each over its own set of masks.

    Attributes:
        decided: how much of each layer is pruned.
        solver: finds the masks.
        options: of the run.
        ranks: others that share the run; a solve ends if one of them has failed.
        shared: whether all of them solve each layer together.
    """

    decided: Decided
    solver: Solver
    options: PruneOptions
    ranks: Ranks = ALONE
    shared: bool = False

    def together(self) -> MaskSolver:
        """Return a solver that all ranks call at once: they share the bands of a layer's rows."""
        return replace(self, shared=True)

    def bands(self, layer: PrunableLayer, inputs: LayerInputs) -> int:
        """Return in how many bands ranks may divide the rows of a layer."""
        problem = self.problem(layer, inputs)
        run = Run(
            start=problem.weight, max_iterations=self.options.max_iterations, memory_bytes=self.options.memory_bytes
        )
        return self.solver.bands(problem, run)

    def solve(self, layer: PrunableLayer, inputs: LayerInputs, block: int) -> SolvedLayer:
        """Find the mask of one layer, and the objective of Wanda's mask, by the diagonal of the same objective.

        If the solver breaks down, the mask is its start, polished, and the report's status says so: one layer must not
        end a run.

        Raises:
            RelaxPruneError: the problem cannot be solved as asked; the message names the layer.
        """
        try:
            polytope = self.decided.polytope_of(layer.name, layer.shape)
            zeros = self.staying(layer)
            if not self.options.moves:
                judged = self._kept(layer, inputs, polytope)
            elif inputs.terms is PLAIN:
                judged = self._refitted(layer, inputs, polytope, zeros)
            else:
                judged = self._refitted_on_terms(layer, inputs, polytope, zeros)
        except RelaxPruneError as error:
            raise RelaxPruneError(f"layer {layer.name!r} in block {block}: {error}") from error
        solution, mask = judged.solution, judged.solution.mask.cpu()
        rows, cols = layer.shape
        report = LayerReport(
            name=layer.name,
            parameter=layer.parameter,
            block=block,
            kind=layer.kind,
            rows=rows,
            cols=cols,
            requested_sparsity=self.decided.fraction(layer.name, (rows, cols)),
            sparsity=1 - int(mask.sum()) / mask.numel(),
            inputs=inputs.report(),
            loss=judged.loss,
            bound=judged.bound,
            cost=cost_of(solution),
        )
        support = mask if zeros is None else mask & ~zeros
        return SolvedLayer(
            layer=layer, mask=mask, report=report, proof=judged.proof, weight=solution.weight, support=support
        )

    def staying(self, layer: PrunableLayer) -> Tensor | None:
        """Return which zeros of a layer, not pruned yet, stay zero: (rows, cols) bool on the CPU, None for none."""
        return staying_zeros(layer.matrix().cpu(), self.options)

    def problem(self, layer: PrunableLayer, inputs: LayerInputs) -> MaskProblem:
        """Return the problem of a layer whose kept weights stay as they are."""
        return self._mask_problem(layer, inputs, self.decided.polytope_of(layer.name, layer.shape))

    def _mask_problem(self, layer: PrunableLayer, inputs: LayerInputs, polytope: Polytope) -> MaskProblem:
        """Return the problem of a layer over some masks."""
        matrix = inputs.gram.matrix
        return MaskProblem(layer.matrix().to(device=matrix.device, dtype=matrix.dtype), inputs.objective(), polytope)

    def _kept(self, layer: PrunableLayer, inputs: LayerInputs, polytope: Polytope) -> _Judged:
        """Solve a layer whose kept weights stay as they are."""
        problem = self._mask_problem(layer, inputs, polytope)
        solution = self._solution(problem)
        certificate = certificate_of(problem, solution, self.options)
        wanda = wanda_objective(problem, solution, self.options.memory_bytes)
        proof = None if certificate is None else (certificate, problem)
        loss = loss_of(solution, problem.dense_energy, wanda)
        if inputs.terms is not PLAIN:
            kept = torch.where(solution.mask, problem.weight, 0.0)
            loss = replace(loss, gram_relative_error=gram_error(problem.weight, kept, inputs.gram.matrix))
        return _Judged(solution, loss, bound_of(solution, certificate), proof)

    def _refitted(self, layer: PrunableLayer, inputs: LayerInputs, polytope: Polytope, zeros: Tensor | None) -> _Judged:
        """Solve a layer whose kept weights move; Wanda's mask is judged with the weights as they were.

        ``zeros`` (rows, cols) are pruned first, and stay zero where they are kept.
        """
        read = inputs.read
        # In the weight's own dtype: the new values are judged as they will be written.
        weight = layer.matrix().to(inputs.gram.matrix.device)
        zeros = None if zeros is None else zeros.to(weight.device)
        problem = ReconstructionProblem(
            weight,
            inputs.gram,
            polytope,
            cross=read.cross,
            dense_gram=read.dense_gram,
            damping=self.options.ridge,
        )
        solution = self._solution(problem) if zeros is None else self._sparse_solution(problem, zeros)
        mask = start_mask(MaskProblem(problem.weight, problem.prepared, polytope), "wanda", self.options.memory_bytes)
        loss = loss_of(solution, problem.reference, problem.objective(torch.where(mask, problem.weight, 0.0)))
        corrected = 0.0 if read.cross is None else self.options.correct
        loss = replace(loss, corrected=corrected, residual=float(problem.residual.sum()))
        return _Judged(solution, loss, bound_of(solution, None))

    def _refitted_on_terms(
        self, layer: PrunableLayer, inputs: LayerInputs, polytope: Polytope, zeros: Tensor | None
    ) -> _Judged:
        """Solve a layer whose kept weights move for an objective of several parts: its mask, then its weights.

        Both minimise the objective on damped Grams; ``zeros`` as for ``_refitted``.
        """
        weight = layer.matrix().to(inputs.gram.matrix.device)
        zeros = None if zeros is None else zeros.to(weight.device)
        masks = polytope if zeros is None else pruning_zeros(polytope, weight, zeros)
        problem = MaskProblem(weight, inputs.objective(self.options.ridge), masks)
        memory = self.options.memory_bytes
        solution = moved(problem, self._solution(problem), zeros, memory)
        assert solution.weight is not None  # ``moved`` gives some
        loss = replace(
            loss_of(solution, problem.dense_energy, problem.objective(start_mask(problem, "wanda", memory), memory)),
            corrected=0.0,
            residual=0.0,
            gram_relative_error=gram_error(weight, solution.weight, inputs.gram.matrix),
        )
        return _Judged(solution, loss, NO_BOUND)

    def _sparse_solution(self, problem: ReconstructionProblem, zeros: Tensor) -> Solution:
        """Solve a layer of which zeros (rows, cols) are to stay zero, among the masks that prune these first.

        A solver that takes no fixed entries looks among all masks, and the nearest of these is taken.
        """
        face = pruning_zeros(problem.polytope, problem.weight, zeros)
        narrow = problem.within(face)
        try:
            self.solver.check(narrow.mask_problem)
        except RelaxPruneError:
            return keep_zeros(problem, self._solution(problem), face, zeros, self.options.memory_bytes)
        return keep_zeros(narrow, self._solution(narrow), face, zeros, self.options.memory_bytes)

    def _solution(self, problem: MaskProblem | ReconstructionProblem) -> Solution:
        """Solve with the options of the run."""
        callback = None if self.ranks.alone else self.ranks.check
        crew = self.ranks if self.shared else None
        return solve(problem, self.solver, options=self.options, callback=callback, crew=crew, throw=False)
