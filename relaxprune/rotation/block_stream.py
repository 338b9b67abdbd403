"""Which matrices of a block read the residual stream and which write to it, found by running a copy of the block.

No table of architectures: with the outputs of all matrices silenced, what goes into a norm is the stream where it is
what went into the block; what is called with a norm's output, or with the stream itself, reads; and a matrix whose
outputs, put back alone, come out of the block as they are, up to a factor for each token, writes. Whether all of this
is the whole truth is then proven: the copy, rotated at random, must put out its old hidden states, rotated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .block_copy import BlockCopy, ModuleCall, close, same_tensor
from .norms import gain_of, random_rotation, unit_weight
from .places import Place, Turn, matrices_of, write

_SILENT: Callable[[Tensor], Tensor] = torch.zeros_like


class Unfit(Exception):
    """Why the residual stream of a model cannot be rotated, as a clause."""


@dataclass(frozen=True)
class StreamNorm:
    """A norm that reads the residual stream.

    Attributes:
        module: its name.
        unit: its weight where it scales nothing.
    """

    module: str
    unit: float


@dataclass(frozen=True)
class Reader:
    """A matrix whose columns turn with the stream.

    Attributes:
        place: where it is.
        norm: name of the norm whose gain is folded into it; None where it reads the stream itself.
    """

    place: Place
    norm: str | None


@dataclass(frozen=True)
class BlockStream:
    """How a block reads the residual stream and writes to it; names are those in the block.

    Attributes:
        norms: those that read it.
        readers: matrices whose columns turn with it.
        writers: matrices whose rows, and biases, turn with it.
    """

    norms: tuple[StreamNorm, ...]
    readers: tuple[Reader, ...]
    writers: tuple[Place, ...]

    def norm_of(self, place: Place) -> str | None:
        """Return the norm whose outputs a matrix reads; None for the stream itself, or if it reads neither."""
        return next((reader.norm for reader in self.readers if reader.place == place), None)

    def turns(self, gains: dict[str, Tensor | None], rotation: Tensor) -> list[tuple[Place, Turn]]:
        """Return what becomes of every matrix, each of which is named once.

        Args:
            gains: norm -> (width,) float64, or None for one that scales nothing.
            rotation: R, (width, width) float64; hidden states x become x R.
        """
        found: dict[Place, Turn] = {}
        for reader in self.readers:
            gain = None if reader.norm is None else gains[reader.norm]
            found[reader.place] = Turn(gain=gain, cols=rotation)
        for place in self.writers:
            found[place] = replace(found.get(place, Turn()), rows=rotation)
        return list(found.items())


def find_stream(copy: BlockCopy) -> BlockStream:
    """Find what turns with the residual stream in a block, and prove it.

    Raises:
        Unfit: something in the block does not commute with rotations.
        RelaxPruneError: the block does not run in float64.
    """
    stream = copy.call.stream
    if stream is None or stream.shape != copy.call.output.shape:
        raise Unfit(f"block {copy.name!r} does not put out hidden states of the shape of those that go in")
    width = stream.shape[-1]
    matrices = {name: matrices_of(name, module) for name, module in copy.block.named_modules() if name}
    owners = [name for name, places in matrices.items() if places]
    output, calls = copy.calls(dict.fromkeys(owners, _silent_if(width)))
    if not close(output, stream):
        raise Unfit(f"block {copy.name!r} does not add what its layers put out to what goes in")
    norms, outputs = _norms(copy, calls, stream)
    readers = _readers(calls, matrices, stream, outputs)
    writers = tuple(
        place for call in calls if (place := _writer(copy, call, owners, matrices, stream, output)) is not None
    )
    _refuse_unreached(copy, owners, calls)
    found = BlockStream(norms, readers, tuple(dict.fromkeys(writers)))
    _prove(copy, found, stream)
    return found


def _silent_if(width: int) -> Callable[[Tensor], Tensor]:
    """Return what silences outputs that may be written to a stream."""
    return lambda output: _SILENT(output) if output.shape[-1] == width else output


def _norms(
    copy: BlockCopy, calls: Sequence[ModuleCall], stream: Tensor
) -> tuple[tuple[StreamNorm, ...], dict[str, Tensor]]:
    """Return the norms that read the stream, and what each puts out."""
    found, outputs = [], {}
    width = stream.shape[-1]
    for call in calls:
        leaf = not any(True for _ in call.module.children()) and not matrices_of(call.name, call.module)
        reads = leaf and len(call.inputs) > 0 and isinstance(call.output, Tensor) and _is_stream(call.inputs[0], stream)
        if not reads or same_tensor(call.inputs[0], call.output) or call.output.shape != call.inputs[0].shape:
            continue
        unit = unit_weight(call.module, width)
        if unit is None:
            kind = type(call.module).__name__
            raise Unfit(f"norm {copy.name}.{call.name} ({kind}) does not commute with rotations, as it shifts channels")
        found.append(StreamNorm(call.name, unit))
        outputs[call.name] = call.output
    return tuple(found), outputs


def _is_stream(tensor: Tensor, stream: Tensor) -> bool:
    """Return whether a tensor holds what went into the block, perhaps in another shape."""
    width = stream.shape[-1]
    if tensor.dim() < 2 or tensor.shape[-1] != width or tensor.numel() != stream.numel():
        return False
    return same_tensor(tensor, stream) or close(tensor.reshape(-1, width).to(stream), stream.reshape(-1, width))


def _readers(
    calls: Sequence[ModuleCall], matrices: dict[str, list[Place]], stream: Tensor, outputs: dict[str, Tensor]
) -> tuple[Reader, ...]:
    """Return the matrices whose modules are called with the stream, or with what a norm of it puts out."""
    found: dict[Place, Reader] = {}
    width = stream.shape[-1]
    for call in calls:
        for tensor in call.inputs:
            norm = next((name for name, output in outputs.items() if same_tensor(tensor, output)), None)
            if norm is None and not _is_stream(tensor, stream):
                continue
            for place in _reading(matrices[call.name], call, width):
                found[place] = Reader(place, norm)
    return tuple(found.values())


def _reading(places: list[Place], call: ModuleCall, width: int) -> list[Place]:
    """Return those of a module's matrices that read what it is called with: of several, all but the one that writes."""
    local = [replace(place, module="") for place in places]
    wide = [place for place, own in zip(places, local, strict=True) if own.shape(call.module)[1] == width]
    return wide if len(places) == 1 else [place for place in wide if place != _writing(places, call, width)]


def _writing(places: list[Place], call: ModuleCall, width: int) -> Place | None:
    """Return the matrix of a module that makes what it puts out: the last one of that width."""
    fitting = [place for place in places if replace(place, module="").shape(call.module)[0] == width]
    return fitting[-1] if fitting else None


def _writer(
    copy: BlockCopy,
    call: ModuleCall,
    owners: Sequence[str],
    matrices: dict[str, list[Place]],
    stream: Tensor,
    silent: Tensor,
) -> Place | None:
    """Return the matrix of a module whose outputs are added to the stream; None if they are not."""
    width = stream.shape[-1]
    place = _writing(matrices[call.name], call, width)
    if place is None or not isinstance(call.output, Tensor) or call.output.shape[-1] != width:
        return None
    each = call.output.numel() == stream.numel()
    noise = _noise(call.output.shape if each else (width,), stream).expand(call.output.shape)
    silenced = dict.fromkeys(owners, _silent_if(width)) | {call.name: lambda output: noise.to(output.dtype)}
    change = (copy.calls(silenced)[0] - silent).reshape(-1, width)
    if not bool(change.any()):
        return None
    added = noise.reshape(-1, width) if each else noise.reshape(-1, width)[:1].expand(change.shape)
    parallel = added * (change * added).sum(dim=1, keepdim=True) / added.square().sum(dim=1, keepdim=True)
    if not close(change, parallel):
        raise Unfit(
            f"what {copy.name}.{call.name} puts out is changed channel by channel before it is added to the residual "
            "stream, as by the gain of a norm between"
        )
    return place


def _noise(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return random numbers, float64: where rows are no tokens, as of experts, one (width,) serves all of them."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(like.device)


def _refuse_unreached(copy: BlockCopy, owners: Sequence[str], calls: Sequence[ModuleCall]) -> None:
    """Raise Unfit if a module with a matrix was not called: whether it reads the stream is then unknown."""
    called = {call.name for call in calls}
    for name in owners:
        if name not in called:
            raise Unfit(f"{copy.name}.{name} is not reached by the first tokens of the text")


def _prove(copy: BlockCopy, found: BlockStream, stream: Tensor) -> None:
    """Rotate the copy at random, and raise Unfit unless it puts out its old hidden states, rotated; it stays rotated.

    Args:
        copy: of the block, not used any more.
        found: what turns in it.
        stream: (..., width), what goes in.
    """
    before = copy.run(stream)
    rotation = random_rotation(stream.shape[-1]).to(stream.device)
    block = copy.block
    gains = {norm.module: gain_of(block.get_submodule(norm.module), norm.unit) for norm in found.norms}
    for place, turn in found.turns(gains, rotation):
        bias = place.bias_of(block)
        write(place.values(block), turn.of(place.values(block)))
        if bias is not None:
            write(bias, turn.of_bias(bias.detach()))
    for norm in found.norms:
        for parameter in block.get_submodule(norm.module).parameters():
            parameter.data.fill_(norm.unit)
    if not close(copy.run(stream @ rotation), before @ rotation):
        raise Unfit(f"block {copy.name!r} does not compute the same in a rotated basis")
