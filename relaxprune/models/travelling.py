"""Loading a model whose blocks travel: everything outside of the blocks is read, each block when its turn comes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency.block_store import BlockStore
from relaxprune.residency.homes import empty_like, home_of, values_of
from relaxprune.residency.sources import InMemory, Shards, Source
from relaxprune.residency.store import attach
from relaxprune.residency.travellers import Traveller, units_of
from relaxprune.support.sentences import some
from relaxprune.support.tensor_bits import same_bits

from .blocks import find_blocks
from .checkpoint import weight_files
from .layers import find_layers
from .loaders import loader
from .merged import Conversions, MergedShards
from .skeleton import make_skeleton
from .stored_dtypes import lend

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CannotTravel(RelaxPruneError):
    """A model that can only be loaded whole; its text says why."""


def load_travelling(
    source: str, folder: Path, arguments: Mapping[str, Any], *, device: str | None, auto: bool, in_memory: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model whose blocks travel.

    Args:
        source: names the model in sentences.
        folder: its checkpoint of safetensors files.
        arguments: of ``from_pretrained``.
        device: what it computes on; None for the CPU.
        auto: whether every tensor keeps the dtype that it is stored in.
        in_memory: keep the blocks in memory while they are away, instead of on disk.

    Returns:
        The model, and what loading says of it, as ``from_pretrained`` does.

    Raises:
        CannotTravel: it has no blocks, or its checkpoint stores tensors in another form than the model holds.
        RelaxPruneError: its checkpoint stores tied tensors with different values.
    """
    paths = [folder / name for name in weight_files(folder)]
    shards = Shards(paths)
    with loader(f"model {source!r}", arguments["trust_remote_code"]):
        skeleton = make_skeleton(str(folder), shards.entries, arguments)
    model, info = skeleton.model, skeleton.info
    if info["missing_keys"] or info["mismatched_keys"] or info["error_msgs"]:
        return model, info  # refused by whoever loads it
    blocks = find_blocks(model, find_layers(model)[0])
    if not blocks.modules:
        raise CannotTravel(f"model {source!r} has no list of blocks that could travel: leave out offload")
    place = torch.device(device or "cpu")
    conversions = Conversions(model, list(shards))
    if conversions.parts:
        shards = MergedShards(paths, conversions)
    stored = _stored_names(source, model, shards, conversions)
    computed = dict(skeleton.dtypes)
    if auto:
        computed = {name: shards.dtype(stored[name]) for name in computed}
    _fill_buffers(model, stored, shards, computed, place)
    emptied = _emptied(model, computed, place)
    travellers = [Traveller(one, stored[name], None if auto else computed[name]) for name, one in emptied.items()]
    units = units_of(travellers, blocks.places(model), len(blocks.modules))
    origin: Source = InMemory({name: shards.read(name) for name in {*stored.values()}}) if in_memory else shards
    attach(model, BlockStore(list(blocks.modules), units, origin, place, shards))
    model.register_state_dict_post_hook(_bring_values)
    vars(model)["_apply"] = _refuse_conversion
    _compute_as_loaded(model, computed, skeleton.dtypes)
    return model, info


def _bring_values(model: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Put the values of blocks that are away into a state dict, which holds the whole model then; parameters stay."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = f"{prefix}{name}"
        if home_of(parameter) is not None and not isinstance(state[key], nn.Parameter):
            state[key] = values_of(parameter)


def _refuse_conversion(*_arguments: object, **_words: object) -> None:
    """Raise RelaxPruneError: what is away cannot be moved or converted."""
    raise RelaxPruneError(
        "model must stay on its device and in its dtype while its blocks travel, got a call that would change them: "
        "load it with that device or dtype instead"
    )


def _stored_names(source: str, model: PreTrainedModel, shards: Shards, conversions: Conversions) -> dict[str, str]:
    """Return the name under which the checkpoint has each tensor of the model; tied names share one.

    Those that are merged of several stored tensors have their own.

    Raises:
        CannotTravel: it has some in another form.
        RelaxPruneError: it has other values for each of two names that the model ties.
    """
    state = model.state_dict(keep_vars=True)
    places = {id(state[name]): name for name in conversions.parts}
    for stored, name in conversions.names.items():
        if name not in state or shards.entries[stored].shape != tuple(state[name].shape):
            continue
        first = places.setdefault(id(state[name]), stored)
        if first != stored and not same_bits(shards.read(first), shards.read(stored)):
            raise RelaxPruneError(
                f"model {source!r} ties {first!r} and {stored!r}, and its checkpoint stores them with different "
                "values: make the checkpoint and its config.json agree"
            )
    other = [name for name, tensor in state.items() if id(tensor) not in places]
    if other:
        raise CannotTravel(
            f"model {source!r} holds tensors in another form than its checkpoint ({some(other)}), and blocks that "
            "travel are read as they are stored: leave out offload"
        )
    return {name: places[id(tensor)] for name, tensor in state.items()}


def _fill_buffers(
    model: nn.Module,
    stored: Mapping[str, str],
    shards: Shards,
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
) -> None:
    """Read the buffers that a checkpoint holds, and put all of them where they are needed."""
    for name, buffer in model.named_buffers():
        if name in stored:
            buffer.data = shards.read(stored[name]).to(dtypes[name])
        buffer.data = buffer.data.to(device)


def _emptied(model: nn.Module, dtypes: Mapping[str, torch.dtype], device: torch.device) -> dict[str, nn.Parameter]:
    """Exchange the parameters of a skeleton for such without memory; returns them, tied ones by their first name."""
    made: dict[int, nn.Parameter] = {}
    found: dict[str, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for local, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            name = f"{prefix}.{local}" if prefix else local
            if id(parameter) not in made:
                empty = empty_like(parameter, dtypes[name], device)
                found[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                made[id(parameter)] = found[name]
            module._parameters[local] = made[id(parameter)]
    return found


def _compute_as_loaded(model: nn.Module, held: Mapping[str, torch.dtype], loaded: Mapping[str, torch.dtype]) -> None:
    """Have tensors that are held in another dtype than loading gives them computed in that one."""
    for prefix, module in model.named_modules():
        own = {local: f"{prefix}.{local}" if prefix else local for local in (*module._parameters, *module._buffers)}
        other = {
            local: loaded[name]
            for local, name in own.items()
            if name in held and held[name] != loaded[name] and loaded[name].is_floating_point
        }
        if other:
            lend(module, other)
