"""Masks by optimisation as a sparsifier of ``torch.ao.pruning``: prepare, calibrate, step, squash.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
>>> sparsifier = RelaxPruneSparsifier(sparsity=0.5)
>>> sparsifier.prepare(model, config=[{"tensor_fqn": "0.weight"}])
>>> outputs = model(torch.randn(64, 8))  # calibrate: any forward passes
>>> sparsifier.step()
>>> sparsifier.squash_mask()
>>> int(model[0].weight.count_nonzero())
16
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.ao.pruning.sparsifier.base_sparsifier import BaseSparsifier
from torch.utils.hooks import RemovableHandle

from relaxprune.problems.errors import RelaxPruneError, did_you_mean
from relaxprune.pruning.layers import PrunableLayer, find_layers
from relaxprune.pruning.one_weight import Figures, InputGram, choice, figures_of
from relaxprune.solvers import Solver


class RelaxPruneSparsifier(BaseSparsifier):
    """Chooses each layer's mask with ``solve``, on the inputs of the forward passes since the last step.

    Every layer is measured on the model as it runs, so all of them on the dense one in a first step; ``prune_model``
    goes block by block, with inputs from blocks that are pruned already. Padding counts as tokens: give batches
    without.

    Args:
        sparsity: fraction pruned of every row.
        pattern: ``"N:M"``, KEEP N of every M consecutive columns; one of the two. An entry of ``config`` may have its
            own amount, solver and options: ``{"tensor_fqn": "0.weight", "sparsity": None, "pattern": "2:4"}``.
        solver: a name or an instance, as for ``solve``.
        **options: further arguments of ``solve``.

    Attributes:
        figures: parameter name -> error and proven bound of its mask, after a step.
    """

    def __init__(
        self, sparsity: float | None = None, pattern: str | None = None, solver: str | Solver = "fw", **options: Any
    ) -> None:
        """Check the amount and the solver; see the class."""
        choice(sparsity, pattern, solver, options)
        super().__init__({"sparsity": sparsity, "pattern": pattern, "solver": solver, "options": options})
        self.figures: dict[str, Figures] = {}
        self._layers: dict[str, PrunableLayer] = {}
        self._inputs: dict[str, InputGram] = {}
        self._handles: list[RemovableHandle] = []

    def prepare(self, model: nn.Module, config: list[dict[str, Any]] | None = None) -> None:
        """Put masks of ones on the layers and listen to their inputs from now on.

        Args:
            model: changed in place.
            config: ``[{"tensor_fqn": "0.weight"}, …]``; None for every layer that can be pruned, but an output head.

        Raises:
            RelaxPruneError: a name that is no weight that can be pruned, or an amount that does not fit it; the model
                is as it was.
        """
        layers, skipped = find_layers(model)
        known = {layer.parameter: layer for layer in layers if layer.expert is None}  # torch masks whole parameters
        reasons = {f"{layer.name}.weight": layer.reason for layer in skipped}
        if config is None:
            getter = getattr(model, "get_output_embeddings", lambda: None)
            config = [{"tensor_fqn": layer.parameter} for layer in known.values() if layer.module is not getter()]
        for entry in config:
            name = entry.get("tensor_fqn")
            if name not in known:
                why = reasons.get(str(name)) or f"no such weight{did_you_mean(str(name), known)}"
                raise RelaxPruneError(f"tensor_fqn must name a weight that can be pruned, got {name!r}: {why}")
            wanted = {**self.defaults, **entry}
            chosen = choice(*(wanted[key] for key in ("sparsity", "pattern", "solver", "options")))
            chosen.target.polytope_of(name, known[name].shape)
        super().prepare(model, config)  # type: ignore[no-untyped-call]
        self._layers = {entry["tensor_fqn"]: known[entry["tensor_fqn"]] for entry in config}
        for name, layer in self._layers.items():
            self._inputs[name] = InputGram(layer.module, name)
            self._handles.append(layer.module.register_forward_pre_hook(self._listener(name), with_kwargs=True))

    def _listener(self, name: str) -> Any:
        """Return the hook that counts what a layer is called with."""

        def listen(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._inputs[name].add(next(iter((*args, *kwargs.values())), None))

        return listen

    def update_mask(  # type: ignore[override]  # the base class says only **kwargs
        self, module: nn.Module, tensor_name: str, tensor_fqn: str, options: dict[str, Any], **wanted: Any
    ) -> None:
        """Choose the mask of one layer, and forget its inputs: a later step looks at the passes after this one.

        Raises:
            RelaxPruneError: no token reached the layer since the last step.
        """
        layer, inputs = self._layers[tensor_fqn], self._inputs[tensor_fqn]
        chosen = choice(wanted["sparsity"], wanted["pattern"], wanted["solver"], options)
        solution = chosen.solution(layer, inputs.gram().to(layer.weight.device))
        parametrizations: Any = module.parametrizations
        parametrizations[tensor_name][0].mask.copy_(layer.as_stored(solution.mask))
        self.figures[tensor_fqn] = figures_of(solution, inputs.tokens)
        self._inputs[tensor_fqn] = InputGram(layer.module, tensor_fqn)

    def squash_mask(self, *args: Any, **kwargs: Any) -> None:
        """Write the zeros into the weights and leave plain modules behind, as the base class does."""
        for handle in self._handles:
            handle.remove()
        masks: dict[str, Any] = {name: layer.module.parametrizations for name, layer in self._layers.items()}
        zeros = {name: lists[name.rpartition(".")[2]][0].mask == 0 for name, lists in masks.items()}
        super().squash_mask(*args, **kwargs)
        for name, layer in self._layers.items():
            layer.apply_mask(~layer.as_matrix(zeros[name]))  # torch multiplies, which gives −0.0
