"""Loading a causal language model so that it can be pruned and saved again, or one sentence on why it cannot.

A tensor that a checkpoint lacks is silently initialised at random by transformers; here it is an error. Weights are
read from safetensors or GGUF only, never from pickles.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from relaxprune.problems.checks import check_device, one_of
from relaxprune.problems.errors import RelaxPruneError, did_you_mean
from relaxprune.residency import PLACES
from relaxprune.support.sentences import some

from .checkpoint import check_config, check_counts, count_elements, count_pieces, weight_files, weight_headers
from .gguf_file import check_gguf, parsed_once
from .loaders import loader
from .size_limit import limited
from .sources import Checkpoint, resolve_source
from .stored_dtypes import FLOAT_DTYPES, keep_stored_dtypes
from .surplus import Surplus
from .travelling import CannotTravel, load_travelling
from .unused_tensors import check_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_logger = logging.getLogger("relaxprune")

_CARD_BYTES = 2**20  # of a model card: its header comes first
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES.values()}


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        device: a ``torch.device`` name; None leaves the model where transformers loads it.
        dtype: "auto" keeps every tensor in the checkpoint's own dtype, whatever its config says, and computes in the
            one that most of it is stored in; bfloat16, float16, float32 or float64 cast all of it.
        revision: branch, tag or commit of a hub model.
        cache_dir: the hub cache; None for the default one.
        attn_implementation: "eager", "sdpa", ...; None for the model's default.
        trust_remote_code: run Python files that come with the model.
        offload: where blocks are while nobody works on them: "cpu" for memory beside an accelerator, "disk" to read
            them from the checkpoint each time; None to load the model whole.
    """

    device: str | None = None
    dtype: str = "auto"
    revision: str | None = None
    cache_dir: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    offload: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            RelaxPruneError: naming the option.
        """
        if self.offload is not None:
            one_of("offload", self.offload, PLACES[1:], " or None")
        if self.dtype != "auto" and self.dtype not in _DTYPES:
            known = ["auto", *_DTYPES]
            hint = did_you_mean(self.dtype, known)
            raise RelaxPruneError(f"dtype {self.dtype!r} is unknown: use one of {', '.join(known)}{hint}")
        if self.device is not None:
            check_device(self.device)
        if self.offload == "cpu" and torch.device(self.device or "cpu").type == "cpu":
            raise RelaxPruneError(
                "offload 'cpu' keeps blocks in memory beside an accelerator, got device 'cpu': give 'disk', or a device"
            )


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be pruned and saved.

    Attributes:
        model: in evaluation mode, dense weights, on the device and in the dtype of the options.
        tokenizer: the model's own.
        source: what ``load_model`` was given.
        commit: the hub commit that was read; None if there is none.
        description: JSON-ready facts for a report: kind, package, license, dtype, checkpoint_dtypes (elements of each),
            device, attn_implementation, revision, commit, unexpected_keys (all
            tensors that the model does not use).
        surplus: what the source holds beside the model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    commit: str | None
    description: dict[str, Any]
    surplus: Surplus = field(default_factory=Surplus)


def load_model(source: str, options: LoadOptions | None = None) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        source: a hub id (``owner/name``), a local folder, a ``.gguf`` file (dequantised to a dense model), or an alias
            of ``SOURCES`` such as ``smollm2-135m``. An alias wins over a folder of that name; ``./name`` is the folder.
        options: see ``LoadOptions``. A hub token is taken from the environment variable HF_TOKEN only.

    Raises:
        FileNotFoundError: ``source`` looks like a path and does not exist.
        RelaxPruneError: the model is missing, unreachable, incomplete, corrupt, quantised, pickled, holds what a pruned
            copy could not, or needs its own code while ``trust_remote_code`` is off; a ``CannotTravel`` if only
            ``offload`` is in the way.
    """
    options = options or LoadOptions()
    checkpoint = _checkpoint(source, options)
    with nullcontext() if checkpoint.gguf_file is None else parsed_once():
        return _loaded(source, checkpoint, options)


def _loaded(source: str, checkpoint: Checkpoint, options: LoadOptions) -> LoadedModel:
    counts, pieces, licence = _check_files(checkpoint)
    # A GGUF file is dequantised to float32 whatever it stores.
    dtype = _choose_dtype(source, options.dtype, counts if checkpoint.gguf_file is None else Counter({"F32": 1}))
    # Names of tensors are found by a second model.
    copies = 1 if checkpoint.gguf_file is None and options.offload is None else 2
    with limited(copies * counts.total(), pieces):
        model, info = _load(source, checkpoint, options, dtype)
    _check_complete(source, info)
    surplus = Surplus.of(model, checkpoint)
    # Even if all are stored alike: some classes load certain tensors in float32 whatever is asked for.
    if options.dtype == "auto" and checkpoint.gguf_file is None and options.offload is None:
        keep_stored_dtypes(model, checkpoint.folder, surplus.tensors.files)
        check_values(model, checkpoint.folder)
    if options.device is not None and options.offload is None:
        torch.nn.Module.to(model, torch.device(options.device))
    description = {
        "source": source,
        "kind": checkpoint.kind,
        "package": checkpoint.package,
        "license": licence or checkpoint.license,
        "revision": options.revision,
        "commit": checkpoint.commit,
        "checkpoint_dtypes": dict(counts),
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(model.device),
        "attn_implementation": model.config._attn_implementation,
        "trust_remote_code": options.trust_remote_code,
        "unexpected_keys": sorted(surplus.tensors.files),
    }
    if surplus.tensors.files:
        _logger.warning("model %s: tensors that the model does not use: %s", source, some(surplus.tensors.files))
    tokenizer = _load_tokenizer(source, checkpoint, options)
    return LoadedModel(model, tokenizer, source, checkpoint.commit, description, surplus)


def load_tokenizer(source: str, options: LoadOptions | None = None) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of a model that ``load_model`` would load; its files must be there, or on the hub.

    Raises:
        FileNotFoundError: ``source`` looks like a path and does not exist.
        RelaxPruneError: there is no usable model or tokenizer.
    """
    options = options or LoadOptions()
    return _load_tokenizer(source, _checkpoint(source, options), options)


def _checkpoint(source: str, options: LoadOptions) -> Checkpoint:
    return resolve_source(
        source,
        revision=options.revision,
        cache_dir=options.cache_dir,
        remote_code=options.trust_remote_code,
    )


def _check_files(checkpoint: Checkpoint) -> tuple[Counter[str], int | None, str | None]:
    """Check the files; return the elements of each stored dtype, the tensors for ``limited``, and the licence."""
    if checkpoint.gguf_file is not None:
        counts, licence = check_gguf(checkpoint.folder / checkpoint.gguf_file)
        return counts, None, licence
    check_config(checkpoint.folder)
    headers = weight_headers(checkpoint.folder, weight_files(checkpoint.folder))
    check_counts(checkpoint.folder, headers)
    return count_elements(headers), count_pieces(headers), _card_licence(checkpoint)


def _card_licence(checkpoint: Checkpoint) -> str | None:
    """The ``license:`` line in the header of the folder's model card."""
    card = checkpoint.folder / "README.md"
    if not card.is_file():
        return None
    with card.open("rb") as file:
        header = file.read(_CARD_BYTES).decode("utf-8", "replace").split("---", 2)
    lines = header[1].splitlines() if len(header) == 3 and not header[0].strip() else []
    values = [line.removeprefix("license:").strip() for line in lines if line.startswith("license:")]
    return values[0] or None if values else None


def _choose_dtype(source: str, requested: str, counts: Counter[str]) -> torch.dtype:
    """The requested dtype, or the one that most of the checkpoint is stored in."""
    stored = counts.most_common(1)[0][0] if counts else "F32"
    if stored not in FLOAT_DTYPES:
        raise RelaxPruneError(
            f"model {source!r} stores its weights as {stored}, a quantised or integer format that cannot be pruned: "
            "give the model it was made from"
        )
    return FLOAT_DTYPES[stored] if requested == "auto" else _DTYPES[requested]


def _load(
    source: str, checkpoint: Checkpoint, options: LoadOptions, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    from transformers import AutoModelForCausalLM, GgufConfig

    arguments: dict[str, Any] = {
        "dtype": dtype,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # collected in the loading info, where _check_complete names them
        "trust_remote_code": options.trust_remote_code,
        # Everything is local by now; only code that lives in another repository may still be fetched.
        "local_files_only": not options.trust_remote_code,
    }
    if options.attn_implementation is not None:
        arguments["attn_implementation"] = options.attn_implementation
    if checkpoint.gguf_file is None:
        arguments["use_safetensors"] = True
    else:
        # Without dequantize=True the model loads, but save_pretrained refuses it after all the work.
        arguments |= {"gguf_file": checkpoint.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    if options.offload is not None:
        return _load_travelling(source, checkpoint, options, arguments)
    with loader(f"model {source!r}", options.trust_remote_code):
        # Its declared type leaves out the pair that output_loading_info=True gives.
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(checkpoint.folder), **arguments)
    model, info = loaded
    if getattr(model, "hf_quantizer", None) is not None:
        raise RelaxPruneError(f"model {source!r} is quantised and cannot be pruned: give the model it was made from")
    return model, info


def _load_travelling(
    source: str, checkpoint: Checkpoint, options: LoadOptions, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model whose blocks travel, as ``_load`` loads a whole one."""
    if checkpoint.gguf_file is not None:
        raise CannotTravel(
            f"model {source!r} is a .gguf file, which is dequantised as a whole, and blocks travel from safetensors: "
            "leave out offload, or save the model with save_pretrained first"
        )
    return load_travelling(
        source,
        checkpoint.folder,
        arguments,
        device=options.device,
        auto=options.dtype == "auto",
        in_memory=options.offload == "cpu",
    )


def _load_tokenizer(source: str, checkpoint: Checkpoint, options: LoadOptions) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    arguments: dict[str, Any] = {
        "trust_remote_code": options.trust_remote_code,
        "local_files_only": not options.trust_remote_code,
    }
    if checkpoint.gguf_file is not None:
        arguments["gguf_file"] = checkpoint.gguf_file
    with loader(f"tokenizer of model {source!r}", options.trust_remote_code):
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint.folder), **arguments)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise RelaxPruneError(f"model {source!r} has no tokenizer of its own: save one into its folder")
    return tokenizer


def check_running(loaded: LoadedModel) -> None:
    """Refuse a model that fails on two tokens: its settings may not fit each other though its tensors fit them.

    Raises:
        RelaxPruneError: with what the model says.
    """
    tokens = torch.zeros(1, 2, dtype=torch.long, device=loaded.model.device)
    with loader(f"model {loaded.source!r}", loaded.description["trust_remote_code"], "run"), torch.no_grad():
        loaded.model(input_ids=tokens, use_cache=False)


def _check_complete(source: str, info: dict[str, Any]) -> None:
    """Refuse a model whose parameters were not all read from the checkpoint."""
    missing = info["missing_keys"]
    if missing:
        raise RelaxPruneError(
            f"model {source!r} lacks {len(missing)} tensors in its checkpoint ({some(missing)}), "
            "which would be filled with random numbers: fetch it again"
        )
    if info["mismatched_keys"]:
        listed = [f"{name} is {tuple(got)}, should be {tuple(want)}" for name, got, want in info["mismatched_keys"]]
        raise RelaxPruneError(f"model {source!r} has tensors of the wrong shape: {some(listed)}")
    if info["error_msgs"]:
        raise RelaxPruneError(f"model {source!r} could not be loaded: {some(info['error_msgs'])}")
