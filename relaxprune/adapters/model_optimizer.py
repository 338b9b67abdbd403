"""A sparsity mode for NVIDIA Model-Optimizer (0.47 or newer): masks by optimisation inside its ``sparsify``.

Importing this module registers the mode, in the process that sparsifies and in one that restores:

    import modelopt.torch.sparsity as mts
    import relaxprune.adapters.model_optimizer
    model = mts.sparsify(model, "relaxprune", config={"data_loader": batches, "collect_func": inputs_of})

The host converts layers, runs the calibration and enforces the masks; this module chooses them. As in the host's other
modes, every layer is calibrated in the dense model.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from modelopt.torch.opt.config import ModeloptBaseConfig, get_kwargs_for_create_model_with_rules
from modelopt.torch.opt.searcher import BaseSearcher
from modelopt.torch.sparsity.weight_sparsity.mode import SparseMagnitudeModeDescriptor, SparsityModeRegistry
from modelopt.torch.sparsity.weight_sparsity.module import SparseModule, SpDMRegistry
from modelopt.torch.sparsity.weight_sparsity.searcher import BaseSparseSearcher
from pydantic import create_model
from torch import Tensor, nn

from relaxprune.problems.errors import RelaxPruneError

from .one_weight import Choice, InputGram, choice, figures_of, weight_of

_PATTERN = re.compile(r"(\d+):(\d+) sparsity")

RelaxPruneConfig: type[ModeloptBaseConfig] = create_model(
    "RelaxPruneConfig",
    **get_kwargs_for_create_model_with_rules(
        registry=SpDMRegistry,
        default_rules={"nn.Linear": {"*": {}, "*lm_head*": None}},
        doc='Configuration for the ``"relaxprune"`` mode: which linear layers are sparsified.',
    ),
)


class RelaxPruneSearcher(BaseSparseSearcher):
    """Choose each layer's mask with ``solve`` on the inputs of the host's forward loop, and write +0.0 under it.

    Search configuration, beside the host's:
        pattern: ``"N:M sparsity"`` PRUNES N of every M consecutive columns, as the host counts; 2:4 by default.
        sparsity: fraction pruned of every row, in place of a pattern.
        solver, solver_options: a solver's name, and further arguments of ``solve``.
        figures: a dict that gets layer name -> error and proven bound of its mask, or None.
    """

    @property
    def default_search_config(self) -> dict[str, Any]:
        """The configuration's entries and their defaults."""
        own = {"sparsity": None, "solver": "fw", "solver_options": None, "figures": None}
        return {**super().default_search_config, **own}

    def sanitize_search_config(self, config: dict[str, Any] | None) -> dict[str, Any]:
        """Fill in defaults; refuse an amount, a solver or options that would fail at the first layer."""
        given = dict(config or {})
        if given.get("sparsity") is not None:
            given.setdefault("pattern", None)
        if unknown := sorted(given.keys() - self.default_search_config.keys()):
            raise RelaxPruneError(f"config has no entry {unknown[0]!r}; it has {', '.join(self.default_search_config)}")
        found: dict[str, Any] = BaseSearcher.sanitize_search_config(self, given)  # the class between takes 2:4 alone
        if found["data_loader"] is None and found["forward_loop"] is None:
            raise RelaxPruneError("config must have a data_loader or a forward_loop, which the masks are chosen on")
        _chosen(found)
        return found

    @torch.no_grad()
    def before_search(self) -> None:
        """Run the forward loop and count the inputs of every layer.

        Raises:
            RelaxPruneError: no token reached one of them; no mask is set then.
        """
        super().before_search()
        self._layers = [(module, InputGram(module, name), name) for name, module in self._named_sparsifiable_modules()]
        handles = [
            module.register_forward_hook(partial(_count, gram), with_kwargs=True) for module, gram, _ in self._layers
        ]
        try:
            self.forward_loop(self.model)
        finally:
            for handle in handles:
                handle.remove()
        for _, inputs, _ in self._layers:
            inputs.counted()

    @torch.no_grad()
    def run_search(self) -> None:
        """Choose and set the masks."""
        chosen, figures = _chosen(self.config), self.config["figures"]
        while self._layers:
            module, inputs, name = self._layers.pop(0)
            layer = weight_of(module, "weight", name)
            solution = chosen.solution(layer, inputs.gram().to(layer.weight.device))
            mask = layer.as_stored(solution.mask)
            # What the module shows is a product with its mask, and that would leave -0.0.
            module._parameters["weight"].masked_fill_(~mask, 0.0)
            module.set_mask(mask)
            if figures is not None:
                figures[name] = figures_of(solution, inputs.tokens)

    def _check_weight_size(self, weight: Tensor, mod_name: str) -> bool:
        """Say whether a layer fits, and warn where it does not."""
        try:
            _chosen(self.config).target.polytope_of(mod_name, (weight.shape[0], weight.shape[1]))
        except RelaxPruneError as error:
            warnings.warn(f"{mod_name} is not sparsified: {error}", stacklevel=2)
            return False
        return True

    def _compute_mask(self, module: SparseModule) -> Tensor:
        """Not called: ``run_search`` sets the masks."""
        raise NotImplementedError


def _count(inputs: InputGram, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
    """Count one batch of a layer's inputs, as a forward hook."""
    inputs.add(next(iter((*args, *kwargs.values())), None))


def _chosen(config: Mapping[str, Any]) -> Choice:
    """Return how masks are chosen.

    Raises:
        RelaxPruneError: no amount or two, an unknown solver, or options that it has not.
    """
    pattern = config["pattern"]
    if pattern is not None:
        found = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
        if found is None:
            raise RelaxPruneError(f'pattern must read "N:M sparsity", such as "2:4 sparsity", got {pattern!r}')
        pruned, group = map(int, found.groups())
        pattern = f"{group - pruned}:{group}"
    return choice(config["sparsity"], pattern, config["solver"], config["solver_options"])


@SparsityModeRegistry.register_mode
class RelaxPruneModeDescriptor(SparseMagnitudeModeDescriptor):
    """The mode ``"relaxprune"``."""

    @property
    def name(self) -> str:
        """Its name."""
        return "relaxprune"

    @property
    def config_class(self) -> type[ModeloptBaseConfig]:
        """What says which layers are sparsified."""
        return RelaxPruneConfig

    @property
    def search_algorithm(self) -> type[BaseSearcher]:
        """What chooses the masks."""
        return RelaxPruneSearcher
