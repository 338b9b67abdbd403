"""Checkpoints that store tensors in parts, such as experts one by one, which the model holds as one tensor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relaxprune.residency.sources import Shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Conversions:
    """How transformers makes a model's tensors of those of a checkpoint, and what it makes of them when it saves.

    Attributes:
        names: stored name -> name in the model, of tensors that are the model's as they are.
        parts: name in the model -> names of the stored tensors that it is made of.

    Args:
        model: as it was loaded, with its conversions.
        stored: the names of a checkpoint's tensors.
    """

    def __init__(self, model: PreTrainedModel, stored: Sequence[str]) -> None:
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        transforms: list[Any] = getattr(model, "_weight_conversions", None) or []
        renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        converters = [one for one in transforms if isinstance(one, WeightConverter)]
        known = dict(model.state_dict(keep_vars=True))
        self._model = model
        self._converters: dict[str, Any] = {name: one for one in converters for name in one.source_patterns}
        self._patterns: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.parts: dict[str, list[str]] = {}
        for name in sorted(stored, key=dot_natural_key):
            whole, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
            if pattern is None:
                self.names[name] = whole
            elif whole in known:
                self._patterns[name] = pattern
                self.parts.setdefault(whole, []).append(name)

    def merged(self, whole: str, parts: Mapping[str, Tensor]) -> Tensor:
        """Return a tensor of the model, made of its stored parts."""
        converter = copy.deepcopy(self._converters[self._patterns[self.parts[whole][0]]])
        for name in self.parts[whole]:
            converter.add_tensor(whole, name, self._patterns[name], parts[name])
        found: Tensor = converter.convert(whole, model=self._model, config=self._model.config)[whole]
        return found

    def split(self, whole: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return the parts of a tensor of the model as they are stored."""
        from transformers.core_model_loading import revert_weight_conversion

        found: dict[str, Tensor] = revert_weight_conversion(self._model, {whole: tensor})
        return found


class MergedShards(Shards):
    """The tensors of safetensors files, and those that a model makes of them, by either's names.

    Args:
        paths: the files.
        conversions: how they are made.
    """

    def __init__(self, paths: Sequence[Path], conversions: Conversions) -> None:
        super().__init__(paths)
        self._conversions = conversions
        self._wholes = {part: whole for whole, parts in conversions.parts.items() for part in parts}
        self._split: tuple[tuple[str, int, int], dict[str, Tensor]] | None = None  # the last one that was split

    def like(self, paths: Sequence[Path]) -> MergedShards:
        """Return other files of the same tensors."""
        return MergedShards(paths, self._conversions)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that a tensor is stored in."""
        return super().dtype(self.parts(name)[0])

    def read(self, name: str) -> Tensor:
        """Return a tensor, on the CPU; one of the model is made of its parts."""
        if name not in self._conversions.parts:
            return super().read(name)
        return self._conversions.merged(name, {part: super(MergedShards, self).read(part) for part in self.parts(name)})

    def parts(self, name: str) -> list[str]:
        """Return the names under which a tensor of the model is stored."""
        return self._conversions.parts.get(name, [name])

    def whole(self, name: str) -> str:
        """Return the name of the model's tensor that a stored one is part of."""
        return self._wholes.get(name, name)

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """Return what is stored under a name, of the model's tensor that it is part of."""
        if name not in self._wholes:
            return tensor
        key = (self._wholes[name], tensor.data_ptr(), tensor._version)
        if self._split is None or self._split[0] != key:
            self._split = None
            self._split = (key, self._conversions.split(key[0], tensor))
        return self._split[1][name]
