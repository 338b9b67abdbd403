"""A modifier for llm-compressor (0.13 or newer): masks by optimisation inside its ``oneshot``.

In Python the modifier is an object in the recipe; a YAML recipe finds it once this module is imported:

    pruning_stage:
      pruning_modifiers:
        RelaxPruneModifier:
          sparsity: 0.5

llm-compressor collects, compresses and propagates; this module handles the inputs of a layer.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from compressed_tensors.utils import align_module_device, update_offload_parameter
from llmcompressor.core import State
from llmcompressor.modifiers.factory import ModifierFactory
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_base import SparsityModifierBase
from pydantic import Field, PrivateAttr, field_validator, model_validator

from relaxprune.problems.errors import RelaxPruneError

from .one_weight import Choice, Figures, InputGram, choice, figures_of, weight_of

HEAD = "re:.*lm_head"  # a plain "lm_head" matches nothing: the host looks at names that end in a dot
HeldBy = dict[torch.nn.Module, Any]


class RelaxPruneModifier(SparsityModifierBase):
    """Choose each layer's mask with ``solve`` on the inputs that the host passes, and write +0.0 into the weight.

    Args:
        sparsity: fraction pruned of every row; or a list or an OWL profile, as in the host.
        mask_structure: "N:M" PRUNES N of every M consecutive columns, as the host counts; "0:0" for none.
        solver: name of a solver.
        solver_options: further arguments of ``solve``.
        targets, ignore, sparsity_profile: as in the host; the output head is always ignored.

    Attributes:
        figures: layer name -> error and proven bound of its mask.
    """

    solver: str = "fw"
    solver_options: dict[str, Any] = Field(default_factory=dict)
    ignore: list[str] = Field(default_factory=lambda: [HEAD])
    _inputs: HeldBy = PrivateAttr(default_factory=dict)
    _figures: dict[str, Figures] = PrivateAttr(default_factory=dict)

    @field_validator("ignore", mode="after")
    @classmethod
    def ignore_names_too(cls, ignore: list[str]) -> list[str]:
        """Make a plain name match the layer of that name, to which the host appends a dot."""
        names = [entry for entry in ignore if not entry.startswith("re:")]
        return [*ignore, *(f"{name}." for name in names), *([] if HEAD in ignore else [HEAD])]

    @model_validator(mode="after")
    def check_choice(self) -> Self:
        """Refuse an amount, a solver or options that would otherwise fail only at the first layer."""
        for amount in self.sparsity if isinstance(self.sparsity, list) else [self.sparsity]:
            self._choice(amount)
        return self

    @property
    def figures(self) -> dict[str, Figures]:
        """Layer name -> error and proven bound of its mask."""
        return self._figures

    def calibrate_module(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...], _output: Any) -> None:
        """Count one batch of a layer's inputs."""
        self._inputs.setdefault(module, InputGram(module, self._name(module))).add(args[0])

    def compress_modules(self) -> None:
        """Choose and write the masks of all layers with counted inputs.

        Raises:
            RelaxPruneError: an amount that does not fit a layer; the message names it.
        """
        for module in list(self._inputs):
            inputs, name = self._inputs.pop(module), self._name(module)
            with torch.no_grad(), align_module_device(module):
                layer = weight_of(module, "weight", name)
                chosen = self._choice(self._module_sparsities[module])
                solution = chosen.solution(layer, inputs.gram().to(layer.weight.device))
                pruned = ~layer.as_stored(solution.mask)
                weight = layer.weight.detach().masked_fill(pruned, 0.0)
            update_offload_parameter(module, "weight", weight)
            self._figures[name] = figures_of(solution, inputs.tokens)

    def on_finalize(self, state: State, **kwargs: Any) -> bool:
        """Remove the hooks, and raise RelaxPruneError if a layer was left over."""
        if not self.ended_:
            self.on_end(state, None)
        if self._inputs:
            left = [self._name(module) for module in self._inputs]
            raise RelaxPruneError(f"{len(left)} layers were calibrated but not compressed, {left[0]!r} among them")
        for held in (self._module_names, self._module_sparsities):
            held.clear()
        return True

    def _name(self, module: torch.nn.Module) -> str:
        """Return a layer's name without the host's trailing dot."""
        return str(self._module_names[module]).rstrip(".")

    def _choice(self, sparsity: float | None) -> Choice:
        """Return how to choose the mask of a layer with this sparsity, as the host counts."""
        if self._prune_m:
            return choice(None, f"{self._prune_m - self._prune_n}:{self._prune_m}", self.solver, self.solver_options)
        return choice(sparsity, None, self.solver, self.solver_options)


ModifierFactory.register("RelaxPruneModifier", RelaxPruneModifier)
