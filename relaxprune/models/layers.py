"""Which weights of a module can be pruned, and how each of them is read and written as a (rows, cols) matrix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.homes import is_away, values_of

from .layer_kinds import PLAIN_DTYPES, is_plain, layer_kind, reason_to_skip, without_parameters
from .shared_memory import shared_memory


@dataclass(frozen=True, eq=False)
class PrunableLayer:
    """One weight that can be pruned.

    Attributes:
        name: the module's name in the model.
        module: the module that owns the weight.
        kind: "Linear", "Conv1D" (stored as (in, out)), "Conv2d" (seen as (out, in * kernel height * kernel width)), or
            "Expert": one of the matrices of a 3-D parameter.
        weight: the parameter, as the module stores it.
        expert: of "Expert", its index in the parameter; else None.
    """

    name: str
    module: nn.Module
    kind: str
    weight: Tensor
    expert: int | None = None

    @property
    def parameter(self) -> str:
        """The name of the parameter in the model; of an expert with its index, as "experts.down_proj[3]"."""
        if self.expert is not None:
            return f"{self.name.rpartition('.')[0]}[{self.expert}]"
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (in, out)."""
        return self.kind == "Conv1D" or (self.kind == "Expert" and bool(self.module.is_transposed))

    @property
    def stored(self) -> Tensor:
        """The layer's own part of the parameter, as it is stored; what is written to it is written to the model.

        If the weight's block is away (``BlockStore``), it is a copy that is read from where it is.
        """
        weight = values_of(self.weight)
        return weight if self.expert is None else weight[self.expert]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) = (outputs, inputs)."""
        weight = self.weight.detach()  # its shape is known wherever its values are
        rows, cols = self.as_matrix(weight if self.expert is None else weight[self.expert]).shape
        return rows, cols

    def matrix(self) -> Tensor:
        """Return the weight as (rows, cols): a view where the storage allows it, else a copy."""
        return self.as_matrix(self.stored)

    def as_matrix(self, stored: Tensor) -> Tensor:
        """Return a tensor of the shape of ``stored``, such as a mask, as (rows, cols)."""
        return stored.T if self.transposed else stored.flatten(1)

    def as_stored(self, matrix: Tensor) -> Tensor:
        """Return a tensor (rows, cols) in the shape of ``stored``, on the device of the weight."""
        stored = self.stored
        return (matrix.T if self.transposed else matrix.reshape(stored.shape)).to(stored.device)

    def apply_mask(self, mask: Tensor) -> None:
        """Write +0.0 where the mask is False; all other entries keep their bits.

        Args:
            mask: (rows, cols) bool, True = kept.

        Raises:
            RelaxPruneError: another dtype or shape.
        """
        self.refuse_misfit(mask)
        with torch.no_grad():
            self.stored.masked_fill_(~self.as_stored(mask), 0.0)

    def write(self, mask: Tensor, weight: Tensor | None) -> None:
        """Write new values, if there are any, and +0.0 where the mask is False.

        Args:
            mask: (rows, cols) bool, True = kept.
            weight: (rows, cols) as ``matrix`` has it, any float dtype, or None.

        Raises:
            RelaxPruneError: another dtype or shape of one of them; nothing is written.
        """
        self.refuse_misfit(mask, weight)
        if weight is not None:
            with torch.no_grad():
                self.stored.copy_(self.as_stored(weight))
        self.apply_mask(mask)

    def refuse_misfit(self, mask: Tensor, weight: Tensor | None = None) -> None:
        """Raise RelaxPruneError where a mask or new values do not fit the weight, or its block is away."""
        if is_away(self.weight):
            raise RelaxPruneError(
                f"{self.parameter!r} can be changed only while its block is there (BlockStore.resident)"
            )
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != self.shape:
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise RelaxPruneError(f"the mask of {self.parameter!r} must be bool of shape {self.shape}, got {got}")
        if weight is not None and not (weight.is_floating_point() and tuple(weight.shape) == self.shape):
            raise RelaxPruneError(
                f"the new values of {self.parameter!r} must be floats of shape {self.shape}, "
                f"got {weight.dtype} of shape {tuple(weight.shape)}"
            )

    def columns(self, inputs: Tensor) -> Tensor:
        """Return the vectors that the (rows, cols) matrix is multiplied with.

        Args:
            inputs: what the module was called with: (..., cols), or (batch, channels, height, width) for Conv2d.

        Returns:
            (..., cols); for Conv2d (batch, positions, cols), with the padding of the convolution in it.
        """
        return columns_of(self.module, inputs)

    def reading(self) -> tuple[object, ...]:
        """Return what turns inputs into columns: two layers share a Gram only if this and the tensor are the same."""
        if not isinstance(self.module, nn.Conv2d):
            return ("rows",)
        conv = self.module
        return (
            conv.kernel_size,
            conv.stride,
            conv.dilation,
            conv.padding_mode,
            tuple(conv._reversed_padding_repeated_twice),
        )


@dataclass(frozen=True)
class SkippedLayer:
    """A weight that was not pruned, and why.

    Attributes:
        name: module name, or parameter name where the module has no ``weight``.
        reason: a short clause.
    """

    name: str
    reason: str


def columns_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the vectors that a module's weight is multiplied with; see ``PrunableLayer.columns``."""
    if not isinstance(module, nn.Conv2d):
        return inputs
    images = inputs if inputs.dim() == 4 else inputs.unsqueeze(0)
    # Holds (left, right, top, bottom) for every way of writing ``padding``, "same" included.
    margins = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(images, margins, mode=mode)
    patches = functional.unfold(padded, module.kernel_size, dilation=module.dilation, stride=module.stride)
    return patches.transpose(1, 2)


def find_layers(model: nn.Module) -> tuple[list[PrunableLayer], list[SkippedLayer]]:
    """Sort every parameter with two or more dimensions into prunable layers and skipped ones.

    Returns:
        The layers in the order of ``model.named_modules()``, and the rest with a reason each, and with them modules
        that compute with a matrix which is no parameter. Parameters with fewer dimensions (biases, norms) are no
        matrices and appear in neither.

    Raises:
        RelaxPruneError: a parameter that has no values yet.
    """
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise RelaxPruneError(f"model must have all its weights, got {lazy[0]!r} without values: run it once before")
    shared = shared_memory(model)
    layers: list[PrunableLayer] = []
    skipped: list[SkippedLayer] = []
    for name, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2:
                continue
            full = f"{name}.{local}" if name else local
            others = shared.get(full, [])
            experts = [] if others else expert_layers(name, local, module, parameter)
            if experts:
                layers += experts
                continue
            kind, reason = layer_kind(module), reason_to_skip(module, local, parameter, others)
            if reason is None and kind is not None:
                layers.append(PrunableLayer(name, module, kind, parameter))
            else:
                skipped.append(SkippedLayer(name if local == "weight" else full, reason or ""))
        if ".parametrizations." not in f".{name}." and (reason := without_parameters(module)) is not None:
            skipped.append(SkippedLayer(name, reason))
    return layers, skipped


def expert_layers(name: str, local: str, module: nn.Module, parameter: nn.Parameter) -> list[PrunableLayer]:
    """Return the matrices of a 3-D parameter of fused experts as transformers writes them; none of any other module."""
    fused = parameter.dim() == 3 and hasattr(type(module), "_apply_gate") and hasattr(module, "is_transposed")
    if not fused or not is_plain(parameter) or parameter.dtype not in PLAIN_DTYPES:
        return []
    prefix = f"{name}.{local}" if name else local
    return [PrunableLayer(f"{prefix}.{index}", module, "Expert", parameter, index) for index in range(len(parameter))]


def check_patterns(kind: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse patterns that match nothing.

    Args:
        kind: "include" or "exclude", for the message.
        patterns: fnmatch patterns on module names (``*`` also matches dots).
        names: names of all prunable layers.

    Raises:
        RelaxPruneError: a pattern that matches no name, with the nearest names.
    """
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or list(names[:3])
        raise RelaxPruneError(
            f"{kind} pattern {pattern!r} matches none of the {len(names)} prunable layers; "
            f"names look like {', '.join(map(repr, near)) or 'nothing, for there are none'}"
        )


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether any fnmatch pattern matches the name, case counting."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def apply_masks(module: nn.Module, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> None:
    """Prune a module by masks from anywhere: a report's, or what ``read_masks`` reads of a file or run folder.

    Pruned weights become +0.0, all others keep their bits. Nothing is written unless everything fits.

    Args:
        module: a model or any part of one, changed in place, on any device.
        masks: parameter name in ``module`` -> (rows, cols) bool, True = kept. (rows, cols) are outputs and inputs also
            where the transpose is stored; a convolution is seen as (out, in * kernel height * kernel width).
        weights: parameter name -> (rows, cols), new values of weights that moved.

    Raises:
        RelaxPruneError: a name that is no prunable parameter, values without a mask, or a mask or values of another
            dtype or shape; the model is as it was.
    """
    moved = weights or {}
    layers = {layer.parameter: layer for layer in find_layers(module)[0]}
    unknown = sorted(set(masks) - set(layers))
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(layers), n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise RelaxPruneError(f"masks names {unknown[0]!r}, which is no prunable parameter{hint}")
    if bare := sorted(set(moved) - set(masks)):
        raise RelaxPruneError(f"weights names {bare[0]!r}, for which there is no mask")
    for parameter, mask in masks.items():
        layers[parameter].refuse_misfit(mask, moved.get(parameter))
    for parameter, mask in masks.items():
        layers[parameter].write(mask, moved.get(parameter))
