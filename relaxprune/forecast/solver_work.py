"""What a solver takes for a layer of any shape: counted on a small one, and scaled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from relaxprune.costs.counting import counted
from relaxprune.costs.work import Rates, Work
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.target import Decided
from relaxprune.problems import MaskProblem
from relaxprune.pruning.made_up import made_up_gram, made_up_inputs, made_up_layer
from relaxprune.pruning.mask_solver import MaskSolver
from relaxprune.pruning.request import PruneRequest

_ROWS, _COLS = 48, 128  # of the layer that is counted
_FEW, _MORE = 10, 40  # iterations whose difference gives what one takes
_COUNTED = 100  # so many are counted one by one
_TIMED_PRODUCTS = 6e7  # multiply-adds of a product of the layer that is timed
_TIMED_COLS, _TIMED_ROWS = 1024, 64  # at most so many columns, at least so many rows
_LEAST, _MOST = 0.2, 50.0  # what a solver may take of what the rates give; beyond it, the clock was disturbed


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The work of one solve by what it grows with.

    Attributes:
        rows: of products and passes over (rows, cols), for one entry; of products also for one column.
        square: of factorisations of (cols, cols) and passes over it, for one entry; of factorisations also for one
            column.
        launches: operations on one band of rows.
        matrices: tensors of the layer's shape in float64 that the solver counts with, for its memory budget.
        products: products of the layer's shape, as the solver counts them.
    """

    rows: Work
    square: Work
    launches: float
    matrices: float
    products: float

    def less(self, other: Scaling) -> Scaling:
        """Return what this one takes more than another."""
        return self.plus(other, -1.0)

    def plus(self, other: Scaling, times: float) -> Scaling:
        """Return this one and another, so many times; no part falls below 0."""
        return Scaling(
            rows=_at_least_nothing(self.rows + times * other.rows),
            square=_at_least_nothing(self.square + times * other.square),
            launches=max(0.0, self.launches + times * other.launches),
            matrices=self.matrices,
            products=max(0.0, self.products + times * other.products),
        )

    def work(self, rows: int, cols: int, memory_bytes: int) -> Work:
        """Return the work of a layer."""
        bands = max(1, math.ceil(8 * self.matrices * rows * cols / memory_bytes))
        return Work(
            flops=rows * cols**2 * self.rows.flops + cols**3 * self.square.flops,
            bytes=rows * cols * self.rows.bytes + cols**2 * self.square.bytes,
            launches=bands * self.launches,
        )


@dataclass(frozen=True, eq=False)
class SolverWork:
    """Counts and times the solver of a request, on layers that are made up.

    Attributes:
        request: what is asked for.
        clock: seconds.
    """

    request: PruneRequest
    clock: Callable[[], float] = time.perf_counter

    @property
    def known(self) -> bool:
        """Whether the solver knows how long it searches."""
        return self.request.solver.planned_iterations(self.request.options.max_iterations) is not None

    @cached_property
    def whole(self) -> Scaling:
        """The work of a solve as it is asked for."""
        if not self._iterates or self._planned <= _COUNTED:
            return self._scaling(self.request.options)
        few, more = self._few, self._more
        times = (self._planned - _FEW) / (_MORE - _FEW)
        return few.plus(more.less(few), times)

    @property
    def products(self) -> float:
        """Products of a layer's shape in one solve."""
        return self.whole.products

    def of(self, rows: int, cols: int) -> Work:
        """Return the work of a layer of some shape."""
        return self.whole.work(rows, cols, self.request.options.memory_bytes)

    def slowness(self, rows: int, cols: int, rates: Rates) -> float:
        """Return what the solver takes on a layer of some shape, cut if it is large, over what the rates give.

        Args:
            rows: of the layer.
            cols: of the layer.
            rates: of this machine.
        """
        unit = self._unit()
        cols = min(cols, -(-_TIMED_COLS // unit) * unit)
        rows = min(rows, max(_TIMED_ROWS, int(_TIMED_PRODUCTS / cols**2)))
        layer = made_up_layer(rows, cols)
        inputs = made_up_inputs(made_up_gram(cols), layer, self.request.options.objective)

        short = self._iterates and self._planned > _MORE
        options, scaling = (self._asking(_MORE), self._more) if short else (self.request.options, self.whole)
        started = self.clock()
        self._solver(options).solve(layer, inputs, 0)
        spent = self.clock() - started
        work = scaling.work(rows, cols, options.memory_bytes)
        return min(max(spent / rates.seconds(work), _LEAST), _MOST)

    @property
    def _planned(self) -> int:
        """How many iterations a band of rows will take."""
        return self.request.solver.planned_iterations(self.request.options.max_iterations) or 0

    @property
    def _iterates(self) -> bool:
        """Whether the number of iterations can be set."""
        return "max_iterations" in self.request.solver.budgets()

    @cached_property
    def _few(self) -> Scaling:
        return self._scaling(self._asking(_FEW))

    @cached_property
    def _more(self) -> Scaling:
        return self._scaling(self._asking(_MORE))

    def _asking(self, iterations: int) -> PruneOptions:
        """Return the options with a number of iterations and without a limit of time."""
        return replace(self.request.options, max_iterations=iterations, time_limit_s=None)

    def _unit(self) -> int:
        """Return what the number of columns must be divisible by."""
        pattern = self.request.target.apart.n_of_m
        return 1 if pattern is None else pattern.group

    def _solver(self, options: PruneOptions) -> MaskSolver:
        """Return what solves a layer with some options."""
        plain = replace(options, certify=None, certify_rows=None)
        return MaskSolver(Decided(self.request.target.apart), self.request.solver, plain)

    def _scaling(self, options: PruneOptions) -> Scaling:
        """Count one solve of a small layer."""
        rows, cols = _ROWS, -(-_COLS // self._unit()) * self._unit()
        layer, matrix = made_up_layer(rows, cols), made_up_gram(cols)
        solver = self._solver(options)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small tensors: threads would wait for each other
        try:
            with counted(cols) as counter:
                solved = solver.solve(layer, made_up_inputs(matrix, layer, self.request.options.objective), 0)
        finally:
            torch.set_num_threads(threads)
        polytope = self.request.target.apart.polytope_of(layer.name, layer.shape)
        problem = MaskProblem(layer.matrix(), matrix, polytope)
        block = 8 * polytope.rows_per_block(layer.shape) * cols
        growing, square = counter.work + (-1.0) * counter.square, counter.square
        return Scaling(
            rows=Work(flops=growing.flops / (rows * cols**2), bytes=growing.bytes / (rows * cols)),
            square=Work(flops=square.flops / cols**3, bytes=square.bytes / cols**2),
            launches=counter.work.launches,
            matrices=options.least_memory(problem, self.request.solver)[0] / block,
            products=solved.report.cost.products,
        )


def _at_least_nothing(work: Work) -> Work:
    """Return work none of whose parts is below 0."""
    return Work(**{name: max(0.0, value) for name, value in work.to_dict().items()})
