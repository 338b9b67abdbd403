"""An order of a layer's columns in which its masks lose little, judged by the layer's own objective.

A score says what pruning a weight costs, and columns are assigned to groups by scores (``channel_order``). What pruning
costs depends on what else is pruned, hence on the order. The search therefore goes back and forth, as in fictitious
play (Brown, 1951): a short solve in an order shows a mask, the mask gives every weight a cost, and the next order
answers the mean of the costs of all orders so far. The mean matters: a mask fits its own order so well that its costs
alone never ask for another one. Every order is judged by the error of its solve, and the best one is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from relaxprune.options.solve_options import SolveOptions
from relaxprune.problems import NM, Gram, KSparse, MaskProblem, ReconstructionProblem
from relaxprune.problems.polytopes import Polytope
from relaxprune.solving.solution import Solution
from relaxprune.solving.solving import solve

from .arrangement import Arrangement
from .channel_order import gains_by_groups
from .channel_paths import ChannelPath

_ANSWERS = 2  # orders that answer the costs of those before them
_FW_ITERATIONS = 30  # of a solve that judges; they rank orders as 80 do
_DAMPING = 0.03  # of the Gram whose inverse is taken, where weights stay


@dataclass(frozen=True, eq=False)
class LayerInOrders:
    """A layer that is solved in one order of its columns after another.

    Attributes:
        weight: (rows, cols), float, in the order of the source.
        gram: (cols, cols), on the same device.
        pattern: the masks.
        damping: what moving a weight costs, as for ``ReconstructionProblem``; None if weights stay.
        memory_budget_bytes: most bytes of a solve's temporaries; None for the default.
    """

    weight: Tensor
    gram: Tensor
    pattern: NM
    damping: float | None = None
    memory_budget_bytes: int | None = None

    def saliency(self) -> Tensor:
        """Return what pruning each weight costs if nothing else is pruned, (rows, cols): W_ij^2 G_jj."""
        return self.weight.square() * self.gram.diagonal()

    def compensated(self) -> Tensor:
        """Return what it costs if all others make up for it, (rows, cols): W_ij^2 / (G^-1)_jj with a damped Gram.

        The cost of optimal brain surgeon (Hassibi and Stork, NeurIPS 1992).
        """
        return self.weight.square() * self._conditional()

    def solve(self, columns: Tensor, polytope: Polytope | None = None) -> tuple[float, Tensor]:
        """Solve the layer briefly, and return the relative error and what pruning each weight costs there.

        Args:
            columns: (cols,) int64, the order.
            polytope: other masks than those of the pattern.

        Returns:
            The error, and (rows, cols) costs in the order of the source.
        """
        order = columns.to(self.weight.device)
        weight, gram = self.weight[:, order], Gram(self.gram[order][:, order])
        masks, back = polytope or self.pattern, order.argsort()
        if self.damping is None:
            problem = MaskProblem(weight, gram, masks)
            found = self._solved(problem, "fw", _FW_ITERATIONS)
            return found.relative_error or 0.0, self._marginal(found.mask[:, back])
        moving = ReconstructionProblem(weight, gram, masks, damping=self.damping)
        found = self._solved(moving, "reconstruct")
        moved = weight if found.weight is None else found.weight.to(weight.dtype)
        return found.relative_error or 0.0, moved[:, back].square() * self._conditional()

    def _solved(
        self, problem: MaskProblem | ReconstructionProblem, solver: str, iterations: int | None = None
    ) -> Solution:
        """Solve with little effort; a solve that breaks down is judged by the mask that it started from."""
        asked = SolveOptions(max_iterations=iterations, memory_budget_bytes=self.memory_budget_bytes)
        return solve(problem, solver, options=asked, throw=False, effort="fast")

    def _marginal(self, mask: Tensor) -> Tensor:
        """Return what pruning each weight adds to f if all others stay as they are in a mask, (rows, cols).

        With R = W − M∘W that is W_ij^2 G_jj + 2 W_ij Σ_k≠j R_ik G_kj.
        """
        diagonal, residual = self.gram.diagonal(), self.weight.masked_fill(mask, 0.0)
        others = residual @ self.gram - residual * diagonal
        return self.weight * (self.weight * diagonal + 2 * others)

    def _conditional(self) -> Tensor:
        """Return 1 / (H^-1)_jj, (cols,), of the damped Gram H: the variance of each input given the others."""
        share = _DAMPING if self.damping is None else max(self.damping, 1e-6)
        matrix = self.gram.to(torch.float64, copy=True)
        matrix.diagonal().add_(share * float(matrix.diagonal().mean()) or 1.0)
        factor = torch.linalg.cholesky_ex(matrix)[0]
        return torch.cholesky_inverse(factor).diagonal().reciprocal().to(self.weight.dtype)


@dataclass(eq=False)
class OrdersTried:
    """Looks for an order of one layer's columns in which short solves end low.

    Attributes:
        layer: the layer.
        seed: of the assignments.
        source: the order of the source.
        best: the best arrangement so far.
        errors: of every arrangement that was tried, the source's first.
        costs: (rows, cols), the sum of what their solves say that pruning costs.
    """

    layer: LayerInOrders
    seed: int
    source: Arrangement
    best: Arrangement
    errors: list[float] = field(default_factory=list)
    costs: Tensor | float = 0.0
    _tried: set[tuple[int, ...]] = field(default_factory=set)

    @classmethod
    def of(cls, layer: LayerInOrders, path: ChannelPath, seed: int) -> OrdersTried:
        """Search the order of a layer along a path."""
        source = Arrangement.of_source(path, layer.weight.shape[1])
        search = cls(layer, seed, source, source)
        search.run()
        return search

    def run(self) -> None:
        """Try the order of the source, orders for costs that know none, and answers to what was tried."""
        layer = self.layer
        self._try(self.source)
        self._answer(layer.saliency())
        self._answer(layer.compensated())
        counted = KSparse(layer.pattern.kept((1, layer.weight.shape[1])))
        free = layer.solve(self.source.columns(), counted)[1]  # what masks without groups would have
        self._answer(free)
        for _ in range(_ANSWERS):
            self._answer((free + self.costs / len(self.errors)) / 2)

    def _answer(self, costs: Tensor) -> None:
        """Try the order that suits some costs best; what costs less than nothing is pruned in any order."""
        # Searched from the source's order: from the best one the search seldom leaves it.
        self._try(self.source.improved(costs.clamp_min(0), self.layer.pattern, self.seed, gains_by_groups))

    def _try(self, arrangement: Arrangement) -> None:
        """Solve in an order that has not been tried, and keep it if that ends lowest."""
        columns = arrangement.columns()
        key = tuple(columns.tolist())
        if key in self._tried:
            return
        self._tried.add(key)
        error, costs = self.layer.solve(columns)
        if not self.errors or error < min(self.errors):
            self.best = arrangement
        self.errors.append(error)
        self.costs = self.costs + costs
