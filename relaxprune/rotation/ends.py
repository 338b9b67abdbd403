"""Where the residual stream of a model begins and ends: embeddings, the last norm and the output head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.inputs.tree import flatten
from relaxprune.models.blocks import BlockList, output_heads
from relaxprune.pruning.channels.channel_paths import rounding_tolerance
from relaxprune.support.forwards import hooked_forwards

from .block_copy import BlockCall, ModuleCall, same_tensor
from .block_stream import StreamNorm, Unfit
from .norms import random_rotation, unit_weight
from .places import Place, matrices_of


@dataclass(frozen=True)
class StreamEnds:
    """What turns with the residual stream outside of the blocks; names are those in the model.

    Attributes:
        embeddings: modules whose rows are summed to the first hidden states.
        norm: the last one; None if there is none.
        head: the output head.
        tied: whether the head shares its weight with something else.
    """

    embeddings: tuple[str, ...]
    norm: StreamNorm | None
    head: Place
    tied: bool


def find_ends(model: nn.Module, blocks: BlockList, calls: list[BlockCall | None], run: Callable[[], Any]) -> StreamEnds:
    """Find what turns with the stream before the first block and after the last.

    Args:
        model: a language model.
        blocks: its blocks.
        calls: one of each block, from the same run.
        run: puts a few tokens through the model.

    Raises:
        Unfit: the stream begins, ends or goes from block to block in another way.
    """
    _refuse_detours(blocks, calls)
    outside = {
        name: module
        for name, module in model.named_modules()
        if name and not any(f"{name}.".startswith(f"{block}.") for block in blocks.names)
    }
    seen, states = _listen(model, outside, blocks, run)
    head_name, head = _head(model)
    norm_calls = [call for call in seen if call.inputs and same_tensor(call.inputs[0], states)]
    norm, ended = _last_norm(norm_calls, states)
    called = next((call for call in seen if call.module is head), None)
    if called is None or not called.inputs or not same_tensor(called.inputs[0], ended):
        raise Unfit(f"output head {head_name!r} does not read what the last norm puts out")
    embeddings = _embeddings(model, blocks, run, {call.name: call.module for call in seen}, states.shape[-1])
    known = {*embeddings, head_name}
    for name, module in outside.items():
        if name not in known and (matrices_of(name, module) or isinstance(module, nn.Embedding)):
            raise Unfit(f"{name!r}, outside of the blocks, has a matrix that is neither an embedding nor the head")
    weight = getattr(head, "weight", None)
    tied = sum(parameter is weight for _, parameter in model.named_parameters(remove_duplicate=False)) > 1
    return StreamEnds(tuple(embeddings), norm, matrices_of(head_name, head)[0], tied)


def _refuse_detours(blocks: BlockList, calls: list[BlockCall | None]) -> None:
    """Raise Unfit unless each block is called with what the one before put out."""
    if blocks.others:
        raise Unfit(f"the model has more than one list of blocks, {blocks.name} and {', '.join(blocks.others)}")
    for (name, call), before in zip(zip(blocks.names, calls, strict=True), [None, *calls], strict=False):
        if call is None or call.stream is None:
            raise Unfit(f"block {name!r} is not called with hidden states")
        if before is not None and not torch.equal(call.stream, before.output):
            raise Unfit(f"block {name!r} is not called with what the block before it puts out")


def _head(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the output head, a layer, and its name."""
    heads = output_heads(model)
    head = heads[0] if heads else None
    if head is None or len(set(heads)) > 1 or not isinstance(head, nn.Linear):
        raise Unfit("the model has no output head that is a single linear layer")
    return next(name for name, module in model.named_modules() if module is head), head


def _listen(
    model: nn.Module, outside: dict[str, nn.Module], blocks: BlockList, run: Callable[[], Any]
) -> tuple[list[ModuleCall], Tensor]:
    """Run the model; return the calls of modules outside of the blocks, and what the last block puts out."""
    seen: list[ModuleCall] = []
    last: list[Tensor] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen.append(ModuleCall(name, module, tuple(flatten((args, kwargs))[0]), output))

        return hook

    def end(_module: nn.Module, _args: object, output: Any) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    hooks = ((module, note(name)) for name, module in outside.items())
    with hooked_forwards(hooks, with_kwargs=True), hooked_forwards([(blocks.modules[-1], end)]):
        run()
    return seen, last[0]


def _last_norm(calls: list[ModuleCall], states: Tensor) -> tuple[StreamNorm | None, Tensor]:
    """Return the norm that reads what the last block puts out, and what it makes of that."""
    leaves = [call for call in calls if not any(True for _ in call.module.children())]
    norms = [call for call in leaves if not matrices_of(call.name, call.module) and isinstance(call.output, Tensor)]
    changing = [call for call in norms if not same_tensor(call.output, states)]
    if not changing:
        return None, states
    call = changing[0]
    unit = unit_weight(call.module, states.shape[-1])
    if unit is None:
        kind = type(call.module).__name__
        raise Unfit(f"norm {call.name} ({kind}) does not commute with rotations, as it shifts channels")
    return StreamNorm(call.name, unit), call.output


def _embeddings(
    model: nn.Module, blocks: BlockList, run: Callable[[], Any], called: dict[str, nn.Module], width: int
) -> list[str]:
    """Return the embeddings that make the first hidden states, once it is proven that these turn with them."""
    found = [
        name for name, module in called.items() if isinstance(module, nn.Embedding) and module.weight.shape[1] == width
    ]
    before = _first_states(model, blocks, run, [], None)
    turn = random_rotation(width).to(before)
    after = _first_states(model, blocks, run, found, turn)
    meant = before.double() @ turn.double()
    if not found or not bool((after - meant).norm() <= rounding_tolerance(before.dtype) * meant.norm()):
        raise Unfit("the first hidden states are not the sum of embeddings, up to a factor")
    return found


class _Enough(Exception):
    """Ends a run once the first block is called."""


def _first_states(
    model: nn.Module, blocks: BlockList, run: Callable[[], Any], turned: list[str], turn: Tensor | None
) -> Tensor:
    """Return what the first block is called with, with the outputs of some embeddings rotated."""
    found: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"]).detach())
        raise _Enough

    handles: list[Any] = [blocks.modules[0].register_forward_pre_hook(stop, with_kwargs=True)]
    for name in turned:
        handles.append(model.get_submodule(name).register_forward_hook(lambda _module, _args, output: output @ turn))
    try:
        run()
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0]
