"""Whether the inputs of a layer lie as the padding mask has them, seen from what a change of one window changes.

Equal shapes say little: a batch of as many windows as tokens looks the same with the two exchanged, and image patches
can be as many as tokens. So the tokens of one window are put in another order, and a layer whose inputs change must
show that in the rows that the mask has for this window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .batches import Batch, run_model
from .tree import flatten, map_tree

_MOST = 0.9  # of what changes must lie in the changed window; rounding elsewhere changes little


def layers_without_padding(
    model: nn.Module, layers: Sequence[PrunableLayer], batches: Sequence[Batch], of_decoder: frozenset[str]
) -> frozenset[str]:
    """Return the names of layers that read nothing of the padded tokens, such as image patches.

    Runs the model twice on the first batch with padding, if there is one.

    Raises:
        RelaxPruneError: a layer's inputs change in other rows than those of the changed window.
    """
    padded = next((batch for batch in batches if batch.kept is not None or batch.decoder_kept is not None), None)
    changed = None if padded is None else _with_one_window_changed(padded)
    if padded is None or changed is None:
        return frozenset()
    batch, window = changed
    hearers = [layer for layer in layers if layer.expert is None]
    before, after = (_rows_read(model, hearers, one) for one in (padded, batch))
    apart = set()
    for layer in hearers:
        kept = padded.decoder_kept if layer.name in of_decoder else padded.kept
        pairs = list(zip(before[layer.name], after[layer.name], strict=False))
        if all(torch.equal(one, other) for one, other in pairs):
            apart |= {layer.name} if pairs else set()
        elif kept is not None:
            for one, other in pairs:
                _refuse_elsewhere(layer, one, other, kept, window)
    return frozenset(apart)


def _with_one_window_changed(batch: Batch) -> tuple[Batch, int] | None:
    """Return a batch with the real tokens of one window in reverse order, and which; None where that changes none."""
    shapes: dict[tuple[int, ...], Tensor] = {}
    for kept in (batch.kept, batch.decoder_kept):
        if kept is not None:
            shapes[tuple(kept.shape)] = kept & shapes.get(tuple(kept.shape), kept)
    ids = [tensor for tensor in _token_ids(batch.kwargs) if tuple(tensor.shape[:2]) in shapes]
    for window in range(min(shape[0] for shape in shapes)):
        turned: dict[int, Tensor] = {}
        for tensor in flatten((batch.args, batch.kwargs))[0]:
            kept = shapes.get(tuple(tensor.shape[:2]))
            other = tensor if kept is None or _holds_flags(tensor) else _turned(tensor, window, kept[window])
            if not torch.equal(other, tensor):
                turned[id(tensor)] = other
        if turned and all(id(tensor) in turned for tensor in ids):
            take = partial(_replaced, turned)
            args, kwargs = map_tree((batch.args, batch.kwargs), Tensor, take)
            return replace(batch, args=args, kwargs=kwargs), window
    return None


def _replaced(others: Mapping[int, Tensor], tensor: Tensor) -> Tensor:
    """Return what takes a tensor's place, by its id, or the tensor."""
    return others.get(id(tensor), tensor)


def _token_ids(kwargs: Mapping[Any, Any]) -> Iterator[Tensor]:
    """Yield the arguments that are known to be token ids, also those in mappings inside."""
    for name, value in kwargs.items():
        if isinstance(value, Mapping):
            yield from _token_ids(value)
        elif name in ("input_ids", "decoder_input_ids") and isinstance(value, Tensor):
            yield value


def _holds_flags(tensor: Tensor) -> bool:
    """Return whether a tensor holds nothing but 0 and 1, as masks do."""
    return bool((tensor.eq(0) | tensor.eq(1)).all())


def _turned(tensor: Tensor, window: int, kept: Tensor) -> Tensor:
    """Return a tensor (batch, tokens, ...) with the real tokens of one window in reverse order."""
    places = kept.nonzero()[:, 0].to(tensor.device)
    turned = tensor.clone()
    turned[window, places] = tensor[window, places.flip(0)]
    return turned


def _rows_read(model: nn.Module, layers: Sequence[PrunableLayer], batch: Batch) -> dict[str, list[Tensor]]:
    """Return one number for each row that each layer reads in one pass, for every call: (..., ) of (..., features)."""
    rows: dict[str, list[Tensor]] = defaultdict(list)
    with _reading(layers, rows):
        run_model(model, batch)
    return rows


@contextmanager
def _reading(layers: Sequence[PrunableLayer], rows: dict[str, list[Tensor]]) -> Iterator[None]:
    """Listen to one forward pass."""

    def note(layer: PrunableLayer, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).detach()
        if layer.kind == "Conv2d":
            inputs = inputs.flatten(1)
        weights = torch.linspace(0.5, 1.5, inputs.shape[-1], device=inputs.device, dtype=torch.float32)
        rows[layer.name].append((inputs.float() * weights).sum(dim=-1))

    handles = []
    try:
        for layer in layers:
            handles.append(layer.module.register_forward_pre_hook(partial(note, layer), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_elsewhere(layer: PrunableLayer, one: Tensor, other: Tensor, kept: Tensor, window: int) -> None:
    """Raise RelaxPruneError where two readings of a layer differ outside of one window's rows."""
    windows, tokens = kept.shape
    fits = one.shape == other.shape
    if fits and (one.dim() >= 2 and one.shape[:2] == kept.shape):
        change = (one - other).square().flatten(1).sum(dim=1)
    elif fits and one.dim() == 1 and len(one) == windows * tokens:
        change = (one - other).square().view(windows, tokens).sum(dim=1)
    elif fits and one.dim() == 1 and len(one) == windows:
        change = (one - other).square()
    else:
        return  # no shape to match, which is refused where it is read
    if float(change[window]) < _MOST * float(change.sum()):
        raise RelaxPruneError(
            f"the inputs of layer {layer.name!r} have as many rows as an attention mask of shape {tuple(kept.shape)}, "
            f"and not in its order: give batches without padding, or exclude this layer"
        )
