"""Every tensor keeps the dtype and the bits that it is stored with, even in checkpoints that mix dtypes.

Transformers loads all tensors in one dtype, except those that some classes force to float32, and most models compute
in one only (a float32 norm between bfloat16 linear layers makes them fail). So a tensor of another dtype is restored as
it is stored, and its module sees it in the dtype of the model while the module runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.container import TensorFile, open_tensors
from relaxprune.support.tensor_header import DTYPES

from .checkpoint import weight_file, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOAT_DTYPES = {name: DTYPES[name] for name in ("BF16", "F16", "F32", "F64")}


def keep_stored_dtypes(model: PreTrainedModel, folder: Path, unused: Collection[str] = ()) -> int:
    """Restore the stored bits of the tensors that loading cast; the model computes as before.

    Args:
        model: loaded from ``folder``.
        folder: a checkpoint of safetensors files.
        unused: tensors of the checkpoint that the model does not have.

    Returns:
        How many tensors were restored.

    Raises:
        RelaxPruneError: a tensor of another dtype cannot be found in the model under its stored name.
    """
    state = model.state_dict(keep_vars=True)
    compute = {name: tensor.dtype for name, tensor in state.items()}
    # Not model.dtype, which is that of the first parameter: a class may force some to float32.
    entries: Counter[torch.dtype] = Counter()
    for tensor in state.values():
        entries[tensor.dtype] += tensor.numel() if tensor.is_floating_point() else 0
    common = entries.most_common(1)[0][0]
    put_back: set[int] = set()
    for file in weight_files(folder):
        with open_tensors(folder / file, weight_file(folder / file)) as tensors:
            names = _cast(tensors, state, model.base_model_prefix, unused, common)
            for stored, name in names.items():
                tensor = state[name]
                # Tied names lead to one tensor, which may be stored more than once.
                tensor.data = tensors.tensor(stored).to(tensor.device)
                put_back.add(id(tensor))
    for module in model.modules():
        own = {**module._parameters, **module._buffers}
        lent = {name: tensor for name, tensor in own.items() if tensor is not None and id(tensor) in put_back}
        if lent:
            lend(module, {name: _dtype_of(tensor, state, compute) for name, tensor in lent.items()})
    return len(put_back)


def _cast(
    file: TensorFile, state: dict[str, Tensor], prefix: str, unused: Collection[str], common: torch.dtype
) -> dict[str, str]:
    """Return the tensors of a file that were cast: stored name -> name in the model."""
    names: dict[str, str] = {}
    for stored, entry in file.header.tensors.items():
        dtype = FLOAT_DTYPES.get(entry.dtype)
        if dtype is None or stored in unused:
            continue
        forms = (stored, f"{prefix}.{stored}", stored.removeprefix(f"{prefix}."))
        name = next((form for form in forms if form in state and state[form].shape == entry.shape), None)
        if name is None and dtype != common:
            raise RelaxPruneError(
                f"{file.what} stores {stored!r} as {entry.dtype}, unlike most of its tensors, and the model has no "
                "tensor of that name and shape to keep it in: convert the checkpoint to one dtype"
            )
        if name is not None and state[name].dtype != dtype:
            names[stored] = name
    return names


def _dtype_of(tensor: Tensor, state: dict[str, Tensor], dtypes: dict[str, torch.dtype]) -> torch.dtype:
    """Return the dtype that a tensor of the model was loaded in."""
    return next(dtypes[name] for name, other in state.items() if other is tensor)


def lend(module: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Cast a module's own tensors to these dtypes while it runs; they have their stored bits at all other times."""
    stored: dict[str, Tensor] = {}

    def before(owner: nn.Module, _args: Any) -> None:
        for name, dtype in dtypes.items():
            tensor = getattr(owner, name)
            stored.setdefault(name, tensor.data)
            tensor.data = stored[name].to(dtype)

    def after(owner: nn.Module, _args: Any, _output: Any) -> None:
        for name in dtypes:
            getattr(owner, name).data = stored.pop(name)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)
