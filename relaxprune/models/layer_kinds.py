"""Which parameters are weights that can be pruned, and why the others cannot."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# 8-bit and packed formats also call themselves floating point; their entries are not the weights.
PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EMBEDDING = "embedding: left alone"
ROUTER_CLASS = re.compile(r"Router|Gating$|MoE\w*Gate$|TopK\w*Gate$", re.IGNORECASE)
_PRUNED = "only the weights of Linear, Conv1D and Conv2d are pruned"


def layer_kind(module: nn.Module) -> str | None:
    """Return "Linear", "Conv1D", "Conv2d", or None for a module of another type."""
    if isinstance(module, nn.Linear):
        return "Linear"
    if isinstance(module, nn.Conv2d):
        return "Conv2d"
    # Looked up by name: a model that has one has imported transformers, other models need not.
    lineage = ((cls.__name__, cls.__module__) for cls in type(module).__mro__)
    return "Conv1D" if ("Conv1D", "transformers.pytorch_utils") in lineage else None


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is its entries and nothing else: no class of its own, such as quantised ones have."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided


def reason_to_skip(module: nn.Module, local: str, parameter: Tensor, others: Sequence[str]) -> str | None:
    """Return why a parameter is not pruned, or None.

    Args:
        module: its owner.
        local: its name there.
        parameter: of two dimensions or more.
        others: names of tensors that share memory with it.
    """
    owner, shape = type(module).__name__, tuple(parameter.shape)
    kind = layer_kind(module) if local == "weight" else None
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return EMBEDDING
    if not is_plain(parameter):
        return f"weight held as a {type(parameter).__name__} of {parameter.dtype}: only plain tensors are pruned"
    if parameter.dtype not in PLAIN_DTYPES:
        return f"weight stored as {parameter.dtype}: not supported"
    if others:
        return f"tied to {', '.join(others)}: pruning it would change them too"
    if type(module).__module__ == "torch.nn.utils.parametrize":
        return f"what a parametrisation computes a weight from {shape}: zeros here are no zeros of the weight"
    if kind is None and layer_kind(module) is not None and local.startswith("weight_"):
        return f"what the weight of this {owner} is computed from {shape}: zeros here are no zeros of the weight"
    if kind is None and ROUTER_CLASS.search(owner):
        return f"router of a mixture of experts, a parameter of {owner} {shape}: left alone"
    if kind is None and parameter.dim() == 3 and _of_experts(module, local):
        return f"3-D parameter of {owner} {shape} (experts fused in an unknown way): not supported"
    if kind is None:
        return f"parameter of {owner} {shape}: {_PRUNED}"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"convolution with {module.groups} groups: not supported"
    return None


def without_parameters(module: nn.Module) -> str | None:
    """Return why a module that computes with a matrix has none to prune, None where it has no matrix or a parameter.

    Quantised layers keep theirs in buffers, or in objects that torch does not know.
    """
    if isinstance(module, torch.jit.ScriptModule) or any(parameter.dim() >= 2 for parameter in module.parameters()):
        return None
    named = f"a {type(module).__name__} without a matrix among its parameters"
    own = [(name, tensor) for name, tensor in module.named_buffers(recurse=False) if _like_weights(name, tensor)]
    lasting = [(name, tensor) for name, tensor in own if name not in module._non_persistent_buffers_set]
    if lasting and not any(True for _ in module.children()):
        held = ", ".join(f"{name} {tuple(tensor.shape)} of {tensor.dtype}" for name, tensor in lasting)
        return f"{named}, but with buffers {held}: these are not pruned (quantised?)"
    if all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features")):
        return f"{named}, but with features: its weight is not pruned (quantised?)"
    return None


def _like_weights(name: str, tensor: Tensor) -> bool:
    """Return whether a buffer may hold a matrix, packed or not."""
    return tensor.dim() >= 2 or (name.endswith("weight") and tensor.numel() > 1)


def _of_experts(module: nn.Module, local: str) -> bool:
    """Return whether a 3-D parameter looks like one matrix for each expert; torch's own modules have none."""
    return not type(module).__module__.startswith("torch.nn.modules.") or type(module) is nn.Module
