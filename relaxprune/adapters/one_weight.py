"""One weight of a module that other code owns: the Gram of its inputs, and its mask in the stored shape.

Every adapter needs this; ``prune_model`` has its own way, since there layers share Grams and are pruned in order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.models.layer_kinds import PLAIN_DTYPES, layer_kind
from relaxprune.models.layers import PrunableLayer, columns_of
from relaxprune.options.solve_options import SolveOptions, solver_of
from relaxprune.options.target import Target
from relaxprune.problems import MaskProblem
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes.ksparse import pruned_count
from relaxprune.solvers import Solver
from relaxprune.solving.solution import Solution
from relaxprune.solving.solving import solve

_logger = logging.getLogger("relaxprune")


@dataclass(frozen=True)
class Choice:
    """How masks are chosen: how much is pruned, and the arguments of ``solve`` other than the problem.

    Adapters write masks: of a method that is known for its weights they take the mask alone, with the counts that the
    host has, and a warning says so once.

    Attributes:
        target: how much.
        solver: the solver that chooses them.
        options: start, polish, budgets, seed, memory.
    """

    target: Target
    solver: Solver
    options: SolveOptions

    def solution(self, layer: PrunableLayer, gram: Tensor, pruned: Tensor | None = None) -> Solution:
        """Return what ``solve`` returns for one weight.

        Args:
            layer: the weight.
            gram: (cols, cols), on the device of the weight.
            pruned: entries that are pruned already and stay so, bool in the stored shape; they count towards the
                sparsity. None for none.

        Raises:
            RelaxPruneError: shapes, values or options that cannot be right.
        """
        fixed = None if pruned is None or not bool(pruned.any()) else layer.as_matrix(pruned)
        polytope = self.target.polytope_of(layer.parameter, layer.shape)
        return solve(MaskProblem(layer.matrix(), gram, polytope, fixed_pruned=fixed), self.solver, options=self.options)


def choice(
    sparsity: float | None, pattern: str | None, solver: str | Solver = "fw", options: Mapping[str, Any] | None = None
) -> Choice:
    """Return a choice, with amount, solver and options checked before any calibration.

    Args:
        sparsity: fraction pruned of every row.
        pattern: ``"N:M"``, KEEP N of every M consecutive columns; give exactly one of the two.
        solver: a name or an instance, as for ``solve``.
        options: further arguments of ``solve``: fields of ``SolveOptions``, and options of the solver named.

    Raises:
        RelaxPruneError: not exactly one amount, an unknown solver, or options that ``solve`` would refuse.
    """
    words = {} if options is None else options
    if not isinstance(words, Mapping):
        raise RelaxPruneError(f"options must be arguments of solve by name, got {words!r}")
    asked, own = SolveOptions().updated(words)
    chosen = solver_of(solver, own)
    asked.check_for(chosen)
    asked.check_moves(False)
    if chosen.published.weights == "refit":
        _warn_of_mask_alone(chosen.name)
    if sparsity is not None:
        pruned_count(0, sparsity)  # refuses anything that is not a fraction
    return Choice(Target(sparsity, pattern), chosen, asked)


@cache
def _warn_of_mask_alone(solver: str) -> None:
    """Say once that a solver's weights are not used."""
    _logger.warning("an adapter takes the mask of %s alone, which prune_model would give new weights as well", solver)


def weight_of(module: nn.Module, tensor_name: str = "weight", name: str = "") -> PrunableLayer:
    """Return one weight of a module as a matrix to prune, with its present values.

    If ``torch.nn.utils.prune`` has replaced the parameter, these are ``name_orig`` under the mask: the tensor under the
    name itself dates from the last forward pass.

    Args:
        module: a Linear, Conv1D or Conv2d with ``groups=1``; any module for a 2-D tensor stored as (rows, cols).
        tensor_name: the attribute that holds the weight.
        name: the module's name, for messages.

    Raises:
        RelaxPruneError: no such tensor, or no known way to view it as (rows, cols).
    """
    owner = type(module).__name__
    if not isinstance(module, nn.Module):
        raise RelaxPruneError(f"module must be a torch.nn.Module, got {owner}")
    weight = _values_of(module, tensor_name)
    if isinstance(weight, Tensor) and not _is_held(module, tensor_name):
        raise RelaxPruneError(
            f"name must be a parameter of the {owner}, got {tensor_name!r}, which is computed from others in every "
            f"forward pass; remove the parametrisation first"
        )
    if not isinstance(weight, Tensor):
        known = ", ".join(repr(local) for local, _ in module.named_parameters(recurse=False)) or "none"
        raise RelaxPruneError(f"name must be a parameter of the {owner}, got {tensor_name!r}; it has {known}")
    kind = layer_kind(module) if tensor_name == "weight" else None
    grouped = isinstance(module, nn.Conv2d) and module.groups != 1
    if grouped or weight.dtype not in PLAIN_DTYPES or (kind is None and weight.dim() != 2):
        raise RelaxPruneError(
            f"{tensor_name!r} of the {owner} must be a float matrix (rows, cols) or the weight of a Linear, Conv1D or "
            f"Conv2d with groups=1, of {', '.join(str(dtype).removeprefix('torch.') for dtype in PLAIN_DTYPES)}, "
            f"got {weight.dtype} of shape {tuple(weight.shape)}{' in groups' if grouped else ''}"
        )
    return PrunableLayer(name, module, kind or "Linear", weight)


def _is_held(module: nn.Module, tensor_name: str) -> bool:
    """Return whether a module holds a tensor itself, perhaps under a mask of ``torch.nn.utils.prune``."""
    masked = f"{tensor_name}_mask" in module._buffers
    return masked or tensor_name in module._parameters or tensor_name in module._buffers


def _values_of(module: nn.Module, tensor_name: str) -> Any:
    """Return the tensor under a name, or None; for a pruned parameter, with its mask applied again."""
    parameter, mask = module._parameters.get(f"{tensor_name}_orig"), module._buffers.get(f"{tensor_name}_mask")
    if parameter is None or mask is None:
        return getattr(module, str(tensor_name), None)
    return parameter.detach().masked_fill(mask == 0, 0.0)


@dataclass(frozen=True)
class Figures:
    """What is kept of a layer's solution once its mask is written: no tensors, which are as large as weights.

    Attributes:
        tokens: number of tokens that its Gram averages over.
        objective: the layer's mean squared error.
        relative_error: the share of the layer's output energy that is lost.
        lower_bound: proven to be at most the objective of every mask.
        relative_gap: (objective − lower_bound) / objective.
        status: how the solve ended.
    """

    tokens: int
    objective: float
    relative_error: float | None
    lower_bound: float
    relative_gap: float
    status: str


def figures_of(solution: Solution, tokens: int) -> Figures:
    """Return the figures of a solution."""
    return Figures(
        tokens,
        solution.objective,
        solution.relative_error,
        solution.lower_bound,
        solution.relative_gap,
        solution.status.name,
    )


class InputGram:
    """The Gram of a module's inputs, batch by batch; holds none of the module's tensors.

    Attributes:
        name: the module's name, for messages.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        """Start from no tokens."""
        self.name = name
        self._module = module
        self._accumulator: GramAccumulator | None = None
        self._batches = 0

    def add(self, inputs: Any) -> None:
        """Count one batch of the module's inputs: (..., cols), or images for Conv2d.

        Raises:
            RelaxPruneError: not a tensor, a width or dtype that differs from before, or values that are not finite.
        """
        if not isinstance(inputs, Tensor):
            raise RelaxPruneError(
                f"layer {self.name!r} must be called with a tensor as its first argument, got {type(inputs).__name__}"
            )
        with torch.no_grad():
            columns = columns_of(self._module, inputs.detach())
        if self._accumulator is None:
            self._accumulator = GramAccumulator(columns.shape[-1], columns.device)
        self._accumulator.add(columns, layer=self.name, batch=self._batches)
        self._batches += 1

    @property
    def tokens(self) -> int:
        """Number of tokens counted."""
        return 0 if self._accumulator is None else self._accumulator.tokens

    def counted(self) -> GramAccumulator:
        """Return the sum so far.

        Raises:
            RelaxPruneError: no token was counted.
        """
        if self._accumulator is None or not self.tokens:
            raise RelaxPruneError(
                f"no token reached layer {self.name!r}: run the model on calibration batches first, or leave the layer "
                "out"
            )
        return self._accumulator

    def gram(self) -> Tensor:
        """Return the Gram so far, (cols, cols) on the device of the inputs; raises as ``counted``."""
        return self.counted().gram()
