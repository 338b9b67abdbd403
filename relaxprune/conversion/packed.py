"""What targets have in common whose weights are packed matrix by matrix into one safetensors file.

The file ``model.TARGET.safetensors`` holds the model's tensors by their names in transformers, without tied ones; in
place of each converted weight it holds the parts that the target packs it into. Its metadata (strings) has ``target``,
``dtype`` (of the model), ``packed`` (JSON: name of a weight -> its shape and the names of its parts) and ``sha256``.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from relaxprune.models.forward import model_device
from relaxprune.models.loaders import loader
from relaxprune.models.rotated_blocks import register_rotated
from relaxprune.models.stored_dtypes import FLOAT_DTYPES
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.container import TensorFormat, metadata_json, read_container, write_container
from relaxprune.support.json_files import Values, misfit
from relaxprune.support.sentences import damaged, first_line

from .target import ConvertedModel, Job, Target, copy_description

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORM = TensorFormat(kind="converted checkpoint", name="relaxprune.converted", keys=("target", "dtype", "packed"))
_SHAPE = Values({"shape": [int], "parts": [str]})
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES.values()}


class PackedTarget(Target):
    """A target that packs each weight into a few tensors."""

    kinds: ClassVar[Mapping[str, str]] = {"Linear": "nn.Linear"}

    @abstractmethod
    def part_names(self, parameter: str) -> list[str]:
        """Return the names under which the parts of a weight are stored."""

    @abstractmethod
    def pack(self, weight: Tensor) -> list[Tensor]:
        """Pack a weight (rows, cols) on the CPU, in the target's dtype."""

    @abstractmethod
    def unpack(self, parts: list[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return what ``pack`` packed, (rows, cols), as the parts hold it."""

    def place(self, module: nn.Module, parts: list[Tensor], device: torch.device) -> str:
        """Put parts into a module on a device that multiplies with them.

        Returns:
            The kernel's name; "" if the device has none, and the module was left alone.
        """
        return ""

    def write(self, job: Job, folder: Path) -> None:
        """Write one file of packed weights and all other tensors, and what describes the model."""
        copy_description(job.run.path, folder)
        tied = getattr(job.model, "all_tied_weights_keys", {})
        tensors = {name: tensor for name, tensor in job.model.state_dict().items() if name not in tied}
        packed: dict[str, Any] = {}
        for layer in job.layers:
            del tensors[layer.parameter]
            names = self.part_names(layer.parameter)
            packed[layer.parameter] = {"shape": list(layer.shape), "parts": names}
            tensors |= dict(zip(names, self.pack(layer.matrix()), strict=True))
        metadata = {
            "target": self.name,
            "dtype": str(job.model.dtype).removeprefix("torch."),
            "packed": json.dumps(packed, sort_keys=True),
        }
        (path,) = self.files(folder)
        write_container(path, _FORM, tensors, metadata)

    def files(self, folder: Path) -> list[Path]:
        """Return the one file."""
        return [folder / f"model.{self.name}.safetensors"]

    def read(self, folder: Path, device: torch.device) -> ConvertedModel:
        """Rebuild the model with unpacked weights, then put the parts in their place where the device can use them."""
        (path,) = self.files(folder)
        if not path.is_file():
            raise damaged(_FORM.describe(path), "it is missing")
        tensors, metadata = read_container(path, _FORM)
        packed = metadata_json(metadata, "packed", path, _FORM)
        if metadata["target"] != self.name or misfit(packed, _SHAPE) or metadata["dtype"] not in _DTYPES:
            raise damaged(_FORM.describe(path), f"it does not describe what {self.name} packs")
        dtype = _DTYPES[metadata["dtype"]]
        try:
            parts = {name: [tensors.pop(part) for part in entry["parts"]] for name, entry in packed.items()}
            shapes = {name: (entry["shape"][0], entry["shape"][1]) for name, entry in packed.items()}
            dense = {name: self.unpack(parts[name], shapes[name], dtype) for name in packed}
        except (LookupError, ValueError, TypeError, RuntimeError) as error:
            raise damaged(_FORM.describe(path), "its parts do not fit together") from error
        model = rebuilt(folder, tensors | dense, dtype)
        torch.nn.Module.to(model, device)
        modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in packed}
        try:
            kernels = {self.place(modules[name], parts[name], device) for name in packed}
        except (RuntimeError, AssertionError) as error:  # what kernels say of a device that they are not made for
            raise RelaxPruneError(f"target {self.name!r} cannot run on {device}: {first_line(error)}") from error
        kernel = kernels.pop() if len(kernels) == 1 else ""
        others = sum(tensor.nbytes for name, tensor in own_tensors(model).items() if name not in packed)
        return ConvertedModel(
            logits=partial(torch_logits, model),
            weights={name: partial(self.unpack, parts[name], shapes[name], dtype) for name in packed},
            memory_bytes=others + sum(part.nbytes for each in parts.values() for part in each),
            kernel=kernel,
            model=model,
            modules=modules,
        )


def rebuilt(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
    """Return the model that a folder's configuration describes, with these tensors, in evaluation mode on the CPU.

    Raises:
        RelaxPruneError: transformers cannot build it, or the tensors are not the model's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with loader(f"model {str(folder)!r}", remote_code=False):
        register_rotated(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            kind: Any = type(AutoModelForCausalLM.from_config(config))
        model, info = kind.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True
        )
    wrong = sorted(map(str, {*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]}))
    if wrong:
        raise RelaxPruneError(f"converted folder {str(folder)!r} does not fit its configuration: see {wrong[0]!r}")
    found: PreTrainedModel = model.eval()
    return found


def torch_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return a transformers model's logits (windows, length, vocabulary), on its device."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens.to(model_device(model)), use_cache=False).logits
    return logits


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers, each tensor once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
