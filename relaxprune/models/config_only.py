"""A model made from its configuration alone: the shapes of all its tensors, and none of their values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from relaxprune.problems.errors import RelaxPruneError

from .checkpoint import check_config
from .loaders import loader
from .loading import LoadOptions
from .size_limit import limited
from .sources import Checkpoint, resolve_source
from .stored_dtypes import FLOAT_DTYPES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_MOST_WEIGHTS, _MOST_TENSORS = 2**44, 2**20  # beyond them a configuration is a mistake
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES.values()}


@dataclass(frozen=True, eq=False)
class ConfiguredModel:
    """A model without values.

    Attributes:
        model: its tensors are on the meta device.
        source: what ``model_from_config`` was given.
        whole: why its blocks could not travel; None if nothing is known against it.
    """

    model: PreTrainedModel
    source: str
    whole: str | None = None


def model_from_config(source: str, options: LoadOptions | None = None) -> ConfiguredModel:
    """Make the model that ``load_model`` would load, without its weights; nothing but its description is fetched.

    Args:
        source: as for ``load_model``, or a ``config.json``.
        options: ``dtype`` "auto" is what the configuration says, float32 if it says nothing; ``device`` is not used.

    Raises:
        FileNotFoundError: ``source`` looks like a path and does not exist.
        RelaxPruneError: there is no usable description, or it is that of a quantised model.
    """
    options = options or LoadOptions()
    checkpoint = resolve_source(
        source,
        revision=options.revision,
        cache_dir=options.cache_dir,
        remote_code=options.trust_remote_code,
        weights=False,
    )
    if checkpoint.gguf_file is None:
        check_config(checkpoint.folder)
    with loader(f"model {source!r}", options.trust_remote_code), limited(_MOST_WEIGHTS, _MOST_TENSORS):
        whole = None if checkpoint.gguf_file is None else "a .gguf file is dequantised as a whole"
        return ConfiguredModel(_made(checkpoint, options), source, whole)


def _made(checkpoint: Checkpoint, options: LoadOptions) -> PreTrainedModel:
    """Return the model on the meta device, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    code = {"trust_remote_code": options.trust_remote_code}
    read: dict[str, Any] = {**code, "local_files_only": not options.trust_remote_code}
    if checkpoint.gguf_file is not None:
        read["gguf_file"] = checkpoint.gguf_file
    config: PretrainedConfig = AutoConfig.from_pretrained(str(checkpoint.folder), **read)
    dtype = _dtype(config, options.dtype, checkpoint.gguf_file is not None)
    how = {} if options.attn_implementation is None else {"attn_implementation": options.attn_implementation}
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, **code, **how)
    model.eval()
    return model


def _dtype(config: PretrainedConfig, asked: str, from_gguf: bool) -> torch.dtype:
    """Return the dtype of the weights: what is asked for, or what the configuration says; GGUF is made float32."""
    if asked != "auto":
        return _DTYPES[asked]
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "dtype"))]
    named = Counter(part.dtype for part in parts if isinstance(getattr(part, "dtype", None), torch.dtype))
    if from_gguf or not named:
        return torch.float32
    found: torch.dtype = named.most_common(1)[0][0]
    if found not in _DTYPES.values():
        raise RelaxPruneError(f"config.json must say a float dtype that can be pruned, got {found}: give --dtype")
    return found
