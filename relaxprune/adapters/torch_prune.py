"""Masks by optimisation as pruning methods of ``torch.nn.utils.prune``.

They behave like torch's own: ``name_orig`` and ``name_mask`` are in the ``state_dict``, ``prune.remove`` makes the
zeros permanent, and they go on top of other methods. What was pruned before stays pruned and counts: ``sparsity=0.5``
after torch pruned 20 % prunes half of every row in total. Once a parameter has a mask of ours, all of its zeros are
+0.0, including those of other methods.

>>> import torch
>>> inputs = torch.randn(64, 8)
>>> module = relaxprune_unstructured(nn.Linear(8, 4), "weight", inputs.T @ inputs / 64, sparsity=0.5)
>>> int(prune.remove(module, "weight").weight.count_nonzero())
16
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import prune

from relaxprune.solvers import Solver
from relaxprune.solving.solution import Solution

from .one_weight import Choice, choice, weight_of

Module = TypeVar("Module", bound=nn.Module)


class RelaxPruneMethod(prune.BasePruningMethod):
    """A mask that ``solve`` found for one weight.

    It is found before torch touches the module: an error halfway through torch's ``apply`` would remove the hook of
    earlier pruning.

    Attributes:
        solution: what ``solve`` returned: the mask, its objective and the proven bound.
    """

    # A container hands a "global" method the whole weight, an "unstructured" one a flat list of what is left.
    PRUNING_TYPE = "global"

    def __init__(self, solution: Solution, mask: Tensor) -> None:
        """Hold a solution, and its mask in the stored shape of the weight."""
        self.solution = solution
        self._mask = mask

    @classmethod
    def apply(  # type: ignore[override]  # each method of torch's has arguments of its own
        cls, module: nn.Module, name: str, gram: Tensor, chosen: Choice
    ) -> RelaxPruneContainer:
        """Choose the mask of ``module``'s parameter ``name`` and prune it in place.

        Args:
            module: see ``weight_of``.
            name: the parameter; it may be pruned already.
            gram: (cols, cols), on the device of the weight.
            chosen: how much, and by which solver.

        Returns:
            All methods on that parameter, even if there is only one: torch adds later ones to an existing container.

        Raises:
            RelaxPruneError: bad input; the module is unchanged.
        """
        layer = weight_of(module, name)
        before = getattr(module, f"{name}_mask", None)
        solution = chosen.solution(layer, gram, None if before is None else before == 0)
        mask = layer.as_stored(solution.mask)
        method: prune.BasePruningMethod = super().apply(module, name, solution, mask)  # type: ignore[no-untyped-call]
        if isinstance(method, RelaxPruneContainer):
            return method
        container = RelaxPruneContainer.of(method)
        hooks = module._forward_pre_hooks
        hooks[next(key for key, hook in hooks.items() if hook is method)] = container
        setattr(module, name, container.apply_mask(module))
        return container

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask, 1 = kept, in the dtype of ``default_mask`` and of the shape of ``t``."""
        return default_mask * self._mask.to(default_mask)


class RelaxPruneContainer(prune.PruningContainer):
    """The methods on one parameter, ours and others, whose zeros are +0.0: torch's product with the mask gives −0.0."""

    @classmethod
    def of(cls, method: prune.BasePruningMethod) -> RelaxPruneContainer:
        """Return a container of a method, or of those in torch's container."""
        first, *others = method if isinstance(method, prune.PruningContainer) else [method]
        container = cls(first)
        for other in others:
            container.add_pruning_method(other)
        return container

    def apply_mask(self, module: nn.Module) -> Tensor:
        """Return the weight with +0.0 where it is pruned."""
        mask: Tensor = getattr(module, f"{self._tensor_name}_mask")
        weight: Tensor = getattr(module, f"{self._tensor_name}_orig")
        return weight.masked_fill(mask == 0, 0.0)


def relaxprune_unstructured(
    module: Module, name: str, gram: Tensor, sparsity: float, solver: str | Solver = "fw", **options: Any
) -> Module:
    """Prune floor(cols · sparsity) entries of every row of a weight.

    Args:
        module: a Linear, Conv1D or Conv2d, or the owner of a 2-D parameter stored as (rows, cols); changed in place.
        name: the parameter, such as ``"weight"``.
        gram: (cols, cols) second moment of the inputs, on the weight's device; ``GramAccumulator`` computes one.
        sparsity: fraction pruned, in [0, 1]; entries that are already pruned count.
        solver: a name or an instance, as for ``solve``.
        **options: further arguments of ``solve``.

    Returns:
        ``module``.

    Raises:
        RelaxPruneError: bad input, such as a sparsity below what a row has already lost; the module is unchanged.
    """
    RelaxPruneMethod.apply(module, name, gram, choice(sparsity, None, solver, options))
    return module


def relaxprune_n_m(
    module: Module, name: str, gram: Tensor, pattern: str, solver: str | Solver = "fw", **options: Any
) -> Module:
    """KEEP N of every M consecutive columns of a weight; ``pattern`` is ``"N:M"``, the rest as for unstructured."""
    RelaxPruneMethod.apply(module, name, gram, choice(None, pattern, solver, options))
    return module


def solution_of(module: nn.Module, name: str) -> Solution | None:
    """Return the latest solution behind a pruned parameter, or None if it has no mask of ours."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, RelaxPruneContainer) and hook._tensor_name == name:
            return next(one.solution for one in reversed(list(hook)) if isinstance(one, RelaxPruneMethod))
    return None
