"""A model without its weights: made from its configuration, and compared with what its checkpoint holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

from relaxprune.support.tensor_header import DTYPES, TensorEntry

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model whose parameters are on the meta device; its buffers are real.

    Attributes:
        model: it, in evaluation mode.
        info: what loading the checkpoint into it says, as ``from_pretrained`` does: ``missing_keys`` and others.
        dtypes: name in the model -> the dtype that loading gives that tensor.
    """

    model: PreTrainedModel
    info: dict[str, Any]
    dtypes: Mapping[str, torch.dtype]


def make_skeleton(folder: str, entries: Mapping[str, TensorEntry], arguments: Mapping[str, Any]) -> Skeleton:
    """Make the model that ``from_pretrained`` makes of a folder, but for the values of its parameters.

    Args:
        folder: the model's folder.
        entries: what the headers of its weight files say.
        arguments: of ``from_pretrained``: dtype, attn_implementation, trust_remote_code, local_files_only.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    where = {name: arguments[name] for name in ("trust_remote_code", "local_files_only")}
    how = {name: arguments[name] for name in ("dtype", "attn_implementation") if name in arguments}
    config = AutoConfig.from_pretrained(folder, **where)
    with _parameters_on_meta():
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=arguments["trust_remote_code"], **how)
    model.tie_weights()
    state = {
        name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
        for name, entry in entries.items()
        if entry.dtype in DTYPES
    }
    loaded: Any = type(model).from_pretrained(
        None,
        config=config,
        state_dict=state,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **how,
    )
    twin, info = loaded
    vars(model)["_weight_conversions"] = getattr(twin, "_weight_conversions", None)  # as of a model that was loaded
    if model.can_generate():
        model.adjust_generation_fn(
            None,
            True,
            None,
            folder,
            cache_dir=None,
            force_download=False,
            proxies=None,
            token=None,
            revision=None,
            subfolder="",
            **where,
        )
    model.config.name_or_path = folder
    return Skeleton(model.eval(), info, {name: tensor.dtype for name, tensor in twin.state_dict().items()})


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Have parameters made without memory, inside; buffers, which a configuration decides, are made as always."""
    # Weak references: memory goes at once, and a dead reference never equals a parameter with its number.
    made: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def empty(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        known, twin = made.get(id(parameter), (None, None))
        if known is None or known() is not parameter:
            twin = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
            made[id(parameter)] = (weakref.ref(parameter), twin)
        return twin

    hook: Any = empty  # what it returns is used, whatever its declared type says
    handle = hooks.register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()
