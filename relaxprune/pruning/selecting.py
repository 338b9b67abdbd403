"""Choosing how far a Gram is shrunk: every candidate is tried on a part of the text, and judged on the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.inputs.layer_grams import LayerGram
from relaxprune.inputs.parts import HeldOut, Parts
from relaxprune.inputs.shrinkage import ShrinkageChoice, shrink
from relaxprune.models.layers import PrunableLayer
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.target import Decided
from relaxprune.problems import Gram, MaskProblem
from relaxprune.problems.precision import product64
from relaxprune.solvers import Solver
from relaxprune.solvers.frank_wolfe.fw import FrankWolfe
from relaxprune.solving.solving import start_mask

from .mask_solver import LayerInputs, MaskSolver, SolvedLayer

_ROWS = 96  # of the layers that share a Gram, evenly spread
_ITERATIONS = 32
_LEAST = 1e-12  # of Wanda's error; smaller ones count as this


@dataclass(frozen=True, eq=False)
class ShrinkageSelector:
    """Chooses among candidates for the shrinkage of a Gram, by the errors that its layers have on other text.

    With some text held out, each candidate shrinks the Gram of the rest, the layers are solved on it, and their error
    on the held-out Gram is compared with that of Wanda's masks, which no shrinkage changes. The logarithm of that ratio
    is averaged over layers, over kinds of text and over what is held out; if whole kinds are held out too, these make
    up half of the average.

    Attributes:
        mask_solver: solves some rows of a layer in a few iterations.
        parts: what can be held out.
        candidates: the values of λ.
    """

    mask_solver: MaskSolver
    parts: Parts
    candidates: tuple[float, ...]

    @classmethod
    def of(cls, mask_solver: MaskSolver, parts: Parts) -> ShrinkageSelector | None:
        """Return the selector for a run that solves layers with ``mask_solver``, None if nothing is to be chosen."""
        candidates = mask_solver.options.statistics.select
        return cls(_quick(mask_solver), parts, candidates) if candidates else None

    @property
    def solves(self) -> int:
        """How often some rows of every layer are solved."""
        return len(self.candidates) * len(self.parts.held_out())

    def samples(self, layers: Sequence[PrunableLayer]) -> list[PrunableLayer]:
        """Return the rows of layers that share a Gram on which candidates are tried, as layers of their own."""
        wanted = -(-_ROWS // max(1, len(layers)))
        return [some_rows(layer, self.mask_solver.decided, wanted) for layer in layers]

    def choose(self, layers: Sequence[PrunableLayer], sums: GramAccumulator) -> ShrinkageChoice:
        """Choose the shrinkage of the Gram that some layers share; of equally good candidates the smallest.

        If no text can be held out, because other text has no token of these layers, it is the largest.
        """
        some = self.samples(layers)
        own: dict[str, list[float]] = {}
        other: dict[str, list[float]] = {}
        for held in self.parts.held_out():
            scores = self._scores(some, sums, held)
            if scores is not None:
                (other if held.whole_kind else own)[held.name] = scores
        scored = [_mean(list(found.values())) for found in (own, other) if found]
        if not scored:
            return ShrinkageChoice(share=max(self.candidates), candidates=self.candidates, errors=(), held_out={})
        overall = _mean(scored)
        best = min(zip(overall, self.candidates, strict=True))[1]
        return ShrinkageChoice(
            share=best,
            candidates=self.candidates,
            errors=_exp(overall),
            held_out={name: _exp(scores) for name, scores in (own | other).items()},
        )

    def _scores(self, layers: Sequence[PrunableLayer], sums: GramAccumulator, held: HeldOut) -> list[float] | None:
        """Return the score of every candidate with some text held out, None if there are no tokens in it or beside."""
        rest = frozenset(range(self.parts.count)) - held.parts
        tests = [test for test in held.tests if sums.part_weight(test) > 0]
        if not tests or not sums.part_weight(rest) > 0:
            return None
        trained, judges = sums.gram(rest), [sums.gram(test) for test in tests]
        bases = [self._wanda_errors(layer, trained, judges) for layer in layers]
        found = []
        for share in self.candidates:
            ratios: list[float] = []
            solutions = self.solved(layers, shrink(trained.clone(), share))
            for layer, base, solution in zip(layers, bases, solutions, strict=True):
                errors = [_error(layer, solution.mask, solution.weight, judge) for judge in judges]
                ratios += map(_log_ratio, errors, base)
            found.append(sum(ratios) / max(1, len(ratios)))
        return found

    def solved(self, layers: Sequence[PrunableLayer], matrix: Tensor) -> Iterator[SolvedLayer]:
        """Solve layers that share a (cols, cols) Gram."""
        gram, read = Gram(matrix), LayerGram(matrix, 1, 1.0, 0.0)
        for layer in layers:
            yield self.mask_solver.solve(layer, LayerInputs(gram, read, 1, layer.name), 0)

    def _wanda_errors(self, layer: PrunableLayer, matrix: Tensor, judges: Sequence[Tensor]) -> list[float]:
        """Return the errors of Wanda's mask of a (cols, cols) Gram on held-out Grams."""
        weight = layer.matrix().to(device=matrix.device, dtype=matrix.dtype)
        problem = MaskProblem(weight, matrix, self.mask_solver.decided.polytope_of(layer.name, layer.shape))
        mask = start_mask(problem, "wanda", self.mask_solver.options.memory_bytes)
        return [_error(layer, mask, None, judge) for judge in judges]


def some_rows(layer: PrunableLayer, decided: Decided, wanted: int) -> PrunableLayer:
    """Return a layer of some rows of another, evenly spread: whole coupled blocks, unless a count scales with rows.

    There are ``wanted`` at most, or one coupled block.
    """
    rows = layer.shape[0]
    block = 1 if decided.target.sparsity is not None else _block_rows(layer, decided)
    blocks = rows // block
    firsts = torch.arange(0, blocks, -(-blocks // max(1, wanted // block)))
    picked = (firsts.unsqueeze(1) * block + torch.arange(block)).flatten()
    matrix = layer.matrix()
    part = nn.Parameter(matrix[picked.to(matrix.device)].clone(), requires_grad=False)
    return PrunableLayer(layer.name, layer.module, "Linear", part)


def _block_rows(layer: PrunableLayer, decided: Decided) -> int:
    """Return how many rows of a layer share a count."""
    return decided.polytope_of(layer.name, layer.shape).rows_per_block(layer.shape)


def _quick(mask_solver: MaskSolver) -> MaskSolver:
    """Return a solver of few iterations; of masks by Frank-Wolfe if the run's own one searches for an unknown time."""
    solver, options = mask_solver.solver, mask_solver.options
    planned = solver.planned_iterations(options.max_iterations)
    if planned is None:
        solver, planned = FrankWolfe(effort="fast"), _ITERATIONS
    return replace(mask_solver, solver=solver, options=_quick_options(solver, options, planned))


def _quick_options(solver: Solver, options: PruneOptions, planned: int) -> PruneOptions:
    """Return options without polish and certificate, and with few iterations if the solver counts any."""
    counted = planned > 0 and "max_iterations" in solver.budgets()
    return replace(
        options,
        polish=None,
        certify=None,
        certify_rows=None,
        time_limit_s=None,
        max_iterations=min(planned, _ITERATIONS) if counted else None,
    )


def _error(layer: PrunableLayer, mask: Tensor, weight: Tensor | None, judge: Tensor) -> float:
    """Return tr(E G Eᵀ) of what a layer loses on a (cols, cols) Gram, with a (rows, cols) mask or new weights."""
    dense = layer.matrix().to(judge.device).to(torch.float64)
    kept = torch.where(mask.to(judge.device), dense, 0.0) if weight is None else weight.to(dense)
    lost = dense - kept
    return float((lost * product64(lost, judge)).sum())


def _log_ratio(error: float, base: float) -> float:
    """Return the logarithm of an error over Wanda's, 0 if that is nothing."""
    return math.log(max(error / base, _LEAST)) if base > 0 else 0.0


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each candidate's scores."""
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def _exp(scores: Sequence[float]) -> tuple[float, ...]:
    """Return geometric means from means of logarithms."""
    return tuple(math.exp(score) for score in scores)
