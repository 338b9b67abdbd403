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

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.ao.pruning.sparsifier.base_sparsifier import BaseSparsifier
from torch.utils.hooks import RemovableHandle

from relaxprune.models.blocks import output_heads
from relaxprune.models.layers import PrunableLayer, find_layers
from relaxprune.problems.errors import RelaxPruneError, did_you_mean
from relaxprune.solvers import Solver

from .one_weight import Choice, Figures, InputGram, choice, figures_of

_OWN = ("sparsity", "pattern", "solver", "options")
_KEYS = ("tensor_fqn", *_OWN)  # of an entry of ``config``


class RelaxPruneSparsifier(BaseSparsifier):
    """Choose each layer's mask with ``solve``, on the inputs of the forward passes since the last step.

    Every layer is measured on the model as it runs, so the first step measures all of them on the dense model;
    ``prune_model`` goes block by block, with inputs from blocks that are already pruned. Padding counts as tokens: give
    batches without padding.

    Args:
        sparsity: fraction pruned of every row.
        pattern: ``"N:M"``, KEEP N of every M consecutive columns; give one of the two. An entry of ``config`` may have
            its own amount, solver and options: ``{"tensor_fqn": "0.weight", "sparsity": None, "pattern": "2:4"}``.
        solver: a name or an instance, as for ``solve``.
        **options: further arguments of ``solve``.

    Attributes:
        figures: parameter name -> error and proven bound of its mask, after a step.
    """

    def __init__(
        self, sparsity: float | None = None, pattern: str | None = None, solver: str | Solver = "fw", **options: Any
    ) -> None:
        """Check the amount, the solver and the options; see the class."""
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
            config: ``[{"tensor_fqn": "0.weight"}, …]``; None for every layer that can be pruned, except an output head.

        Raises:
            RelaxPruneError: a name given twice or not of a weight that can be pruned, an amount that does not fit it,
                an unknown key, or a second call; the model is unchanged.
        """
        if self.groups:
            raise RelaxPruneError("prepare was called before, and a sparsifier is for one model: create a new one")
        layers, skipped = find_layers(model)
        known = {layer.parameter: layer for layer in layers if layer.expert is None}  # torch masks whole parameters
        reasons = {f"{layer.name}.weight": layer.reason for layer in skipped}
        if config is None:
            heads = output_heads(model)
            config = [  # of torch's attention the output layer is never called: its weight is used as a tensor
                {"tensor_fqn": layer.parameter}
                for layer in known.values()
                if layer.module not in heads
                and not isinstance(layer.module, nn.modules.linear.NonDynamicallyQuantizableLinear)
            ]
        names = [self._check_entry(entry, known, reasons) for entry in config]
        if not names or len(set(names)) < len(names):
            raise RelaxPruneError(f"config must name at least one weight, each once, got {', '.join(names) or 'none'}")
        super().prepare(model, config)  # type: ignore[no-untyped-call]
        self._layers = {name: known[name] for name in names}
        self._inputs = {name: InputGram(layer.module, name) for name, layer in self._layers.items()}
        self._handles = [
            layer.module.register_forward_pre_hook(partial(self._listen, name), with_kwargs=True)
            for name, layer in self._layers.items()
        ]

    def _check_entry(self, entry: Any, known: dict[str, PrunableLayer], reasons: dict[str, str]) -> str:
        """Return the name in an entry of ``config``, once all of the entry is checked."""
        if not isinstance(entry, dict):
            raise RelaxPruneError(f'config must be a list of dicts such as {{"tensor_fqn": "0.weight"}}, got {entry!r}')
        for key in entry:
            if key not in _KEYS:
                raise RelaxPruneError(
                    f"an entry of config may have {', '.join(_KEYS)}, got {key!r}{did_you_mean(str(key), _KEYS)}"
                )
        name = entry.get("tensor_fqn")
        if not isinstance(name, str) or name not in known:
            why = reasons.get(str(name)) or f"no such weight{did_you_mean(str(name), known)}"
            raise RelaxPruneError(f"tensor_fqn must name a weight that can be pruned, got {name!r}: {why}")
        _choice({**self.defaults, **entry}).target.polytope_of(name, known[name].shape)
        return name

    def _listen(self, name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the inputs of one call of a layer."""
        self._inputs[name].add(next(iter((*args, *kwargs.values())), None))

    def step(self, use_path: bool = True) -> None:
        """Choose the masks of all layers, then write them and forget the inputs: a later step uses later passes.

        Raises:
            RelaxPruneError: nothing is prepared, or no token reached a layer since the last step; as after any other
                error, masks and inputs are unchanged.
        """
        self._refuse_unprepared()
        if self.enable_mask_update:
            for inputs in self._inputs.values():
                inputs.counted()
            found = {group["tensor_fqn"]: self._found(**group) for group in self.groups}
            for name, (mask, figures) in found.items():
                self._write(name, mask, figures)

    def update_mask(self, module: nn.Module, tensor_name: str, **wanted: Any) -> None:
        """Choose and write the mask of one layer, as ``step`` does."""
        self._write(wanted["tensor_fqn"], *self._found(**wanted))

    def _found(self, tensor_fqn: str, **wanted: Any) -> tuple[Tensor, Figures]:
        """Return the mask of one layer in the stored shape, and its figures."""
        layer, inputs = self._layers[tensor_fqn], self._inputs[tensor_fqn]
        solution = _choice(wanted).solution(layer, inputs.gram().to(layer.weight.device))
        return layer.as_stored(solution.mask), figures_of(solution, inputs.tokens)

    def _write(self, name: str, mask: Tensor, figures: Figures) -> None:
        """Write the mask of one layer and start again with its inputs."""
        self._mask(name).copy_(mask)
        self.figures[name] = figures
        self._inputs[name] = InputGram(self._layers[name].module, name)

    def _mask(self, name: str) -> Any:
        """Return the mask that torch multiplies a weight with, in the stored shape."""
        return self._layers[name].module.get_submodule(f"parametrizations.{name.rpartition('.')[2]}.0").mask

    def _refuse_unprepared(self) -> None:
        """Raise RelaxPruneError unless a model is prepared and not squashed."""
        if not self._layers:
            raise RelaxPruneError(
                "step and squash_mask need a prepared model: "
                + ("the masks are squashed already; create a new sparsifier" if self.groups else "call prepare first")
            )

    def squash_mask(self, *args: Any, **kwargs: Any) -> None:
        """Write the zeros into the weights and leave plain modules behind, as the base class does, once."""
        self._refuse_unprepared()
        for handle in self._handles:
            handle.remove()
        zeros = {name: self._mask(name) == 0 for name in self._layers}
        super().squash_mask(*args, **kwargs)
        for name, layer in self._layers.items():
            layer.apply_mask(~layer.as_matrix(zeros[name]))  # torch multiplies, which gives −0.0
        for held in (self._layers, self._inputs, self._handles):
            held.clear()


def _choice(entry: dict[str, Any]) -> Choice:
    """Return how to choose the mask for an entry of the complete configuration."""
    return choice(*(entry[key] for key in _OWN))
