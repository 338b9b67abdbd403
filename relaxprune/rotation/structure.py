"""What of a model may be rotated, found and proven before anything is learned or changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from relaxprune.inputs.batches import Batch, run_model
from relaxprune.models.blocks import BlockList, find_blocks
from relaxprune.models.layer_kinds import PLAIN_DTYPES, is_plain
from relaxprune.models.layers import find_layers
from relaxprune.options.target import Target
from relaxprune.problems.errors import RelaxPruneError

from .block_copy import BlockCall, BlockCopy, record_calls
from .block_stream import BlockStream, Unfit, find_stream
from .ends import StreamEnds, find_ends
from .places import matrices_of
from .value_heads import ValuePath, find_value_heads

_TOKENS = 12  # of the text, on which everything is proven
NOT_REACHED = "no token reaches it"


@dataclass(frozen=True, eq=False)
class Structure:
    """What turns in a model.

    Attributes:
        blocks: the model's blocks.
        ends: what turns with the residual stream outside of them; None if the stream stays.
        streams: for each block what turns with the stream in it; empty if that stays.
        stays: why the residual stream stays, as a clause; "" if it turns.
        values: for each block its value heads, or why they stay.
    """

    blocks: BlockList
    ends: StreamEnds | None
    streams: tuple[BlockStream, ...]
    stays: str
    values: tuple[tuple[ValuePath, ...] | str, ...]

    @property
    def paths(self) -> list[tuple[int, ValuePath]]:
        """All value paths with the numbers of their blocks."""
        return [
            (index, path) for index, found in enumerate(self.values) if not isinstance(found, str) for path in found
        ]

    def fitting(self, target: Target) -> Structure:
        """Return what turns if heads that no mask of ``target`` fits stay as they are."""
        values = tuple(
            found if isinstance(found, str) else _fitting(target, block, found)
            for block, found in zip(self.blocks.modules, self.values, strict=True)
        )
        return replace(self, values=values)


def find_structure(model: nn.Module, batches: Sequence[Batch]) -> Structure:
    """Find out what may be rotated in a language model.

    Args:
        model: as ``borrowed`` leaves it: it runs without gradients and without a cache.
        batches: of token ids; the first tokens of the first one are used.

    Raises:
        RelaxPruneError: the model has no blocks, the batches hold no token ids, or a block does not run in float64.
    """
    blocks = find_blocks(model, find_layers(model)[0])
    if not blocks.modules:
        raise RelaxPruneError("model must have a list of blocks to be rotated, got one without")
    _refuse_shared(model, blocks)
    several = few_tokens(batches)
    one = replace(several, kwargs={"input_ids": several.kwargs["input_ids"][:, :1]})
    calls = record_calls(blocks.modules, lambda: run_model(model, several))
    single = record_calls(blocks.modules, lambda: run_model(model, one))
    values = tuple(
        _values(blocks, index, call, alone) for index, (call, alone) in enumerate(zip(calls, single, strict=True))
    )
    try:
        ends = find_ends(model, blocks, calls, lambda: run_model(model, several))
        streams = tuple(_stream(blocks, index, call) for index, call in enumerate(calls))
    except Unfit as reason:
        return Structure(blocks, None, (), str(reason), values)
    return Structure(blocks, ends, streams, "", values)


def _fitting(target: Target, block: nn.Module, paths: tuple[ValuePath, ...]) -> tuple[ValuePath, ...] | str:
    """Return the paths of a block all of whose heads, parts of two matrices each, masks fit; or why there are none."""
    kept = []
    for path in paths:
        made, read = (matrices_of(name, block.get_submodule(name))[0] for name in (path.producer, path.consumer))
        (_, cols), (rows, _) = made.shape(block), read.shape(block)
        sizes = {len(head.rows) for head in path.heads}
        if all(target.fits((size, cols)) and target.fits((rows, size)) for size in sizes):
            kept.append(path)
    return tuple(kept) if kept else f"masks of {target.words} do not fit a head alone"


def _refuse_shared(model: nn.Module, blocks: BlockList) -> None:
    """Raise RelaxPruneError for weights of blocks that would turn twice, or are no plain numbers."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        if not is_plain(parameter) or parameter.dtype not in PLAIN_DTYPES:
            raise RelaxPruneError(
                f"model must hold plain floats to be rotated, got {name!r}, a {type(parameter).__name__} of "
                f"{parameter.dtype}: give the model that it was made from"
            )
    for shared in (group for group in names.values() if len(group) > 1):
        if any(name.startswith(f"{block}.") for name in shared for block in blocks.names):
            raise RelaxPruneError(
                f"model must have blocks with weights of their own to be rotated, got {shared[0]!r} and {shared[1]!r} "
                "in one: leave its rotation out"
            )


def few_tokens(batches: Sequence[Batch]) -> Batch:
    """Return a batch of a few tokens."""
    found = batches[0].kwargs.get("input_ids", batches[0].args[0] if batches[0].args else None)
    if not isinstance(found, Tensor) or found.dim() != 2 or found.is_floating_point():
        raise RelaxPruneError("batches must hold token ids of shape (windows, length) for a rotation, got none")
    return Batch((), {"input_ids": found[:1, :_TOKENS]})


def _values(
    blocks: BlockList, index: int, call: BlockCall | None, single: BlockCall | None
) -> tuple[ValuePath, ...] | str:
    """Return the value heads of one block, or why they stay."""
    if call is None or single is None:
        return NOT_REACHED
    block, name = blocks.modules[index], blocks.names[index]
    return find_value_heads(BlockCopy(block, call, name), BlockCopy(block, single, name))


def _stream(blocks: BlockList, index: int, call: BlockCall | None) -> BlockStream:
    """Return what turns with the stream in one block."""
    assert call is not None  # by ``find_ends``
    return find_stream(BlockCopy(blocks.modules[index], call, blocks.names[index]))
