"""Trees of values and tensors as bytes, for other processes: safetensors and JSON, so nothing is unpickled.

A bool tensor takes one bit an entry.
"""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from relaxprune.support.mask_bits import pack_mask, unpack_mask

_FACTS = "facts"  # the tree, as JSON in UTF-8; tensors are named by their numbers


def pack(tree: Any) -> Tensor:
    """Return a tree of dicts with string keys, lists, tuples, tensors and JSON's values as (bytes,) uint8."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_told(tree, tensors)).encode()
    tensors[_FACTS] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return torch.frombuffer(bytearray(safetensors.torch.save(tensors)), dtype=torch.uint8)


def unpack(data: Tensor) -> Any:
    """Return the tree that ``pack`` made (bytes,) uint8 of: tuples as lists, tensors on the CPU."""
    tensors = safetensors.torch.load(data.numpy().tobytes())
    return _heard(json.loads(tensors[_FACTS].numpy().tobytes()), tensors)


def _told(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a tree as JSON, its tensors added to ``tensors``."""
    if isinstance(node, dict):
        return {"dict": {key: _told(value, tensors) for key, value in node.items()}}
    if isinstance(node, (list, tuple)):
        return [_told(value, tensors) for value in node]
    if not isinstance(node, Tensor):
        return node
    name = str(len(tensors))
    if node.dtype == torch.bool and node.dim():
        tensors[name] = pack_mask(node)
        return {"bits": name, "shape": list(node.shape)}
    tensors[name] = node.detach().cpu().contiguous().clone()  # clones share no memory, which safetensors refuses
    return {"tensor": name}


def _heard(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo ``_told``."""
    if isinstance(node, list):
        return [_heard(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "bits" in node:
        return unpack_mask(tensors[node["bits"]], tuple(node["shape"]))
    return {key: _heard(value, tensors) for key, value in node["dict"].items()}
