"""Reordering the output channels of some layers together with the input columns that are made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from relaxprune.models.layers import PrunableLayer, find_layers
from relaxprune.problems.errors import RelaxPruneError

from .permutation import Permutation


def apply_permutations(model: nn.Module, permutations: Iterable[Permutation]) -> None:
    """Reorder the channels of a model as a run did, before its masks are applied.

    Args:
        model: the model before pruning, changed in place.
        permutations: a run's; those that were not applied are skipped.

    Raises:
        RelaxPruneError: a layer that the model does not have, or an order that does not fit its channels.
    """
    applied = [permutation for permutation in permutations if permutation.applied]
    layers = {layer.name: layer for layer in find_layers(model)[0]} if applied else {}
    for permutation in applied:
        permute(layers, permutation)


def permute(layers: Mapping[str, PrunableLayer], permutation: Permutation, *, undo: bool = False) -> None:
    """Reorder a consumer's columns and its producers' rows; every entry keeps its bits.

    Args:
        layers: module name -> layer, with all that the permutation names.
        permutation: an applied one.
        undo: put everything back instead.

    Raises:
        RelaxPruneError: a layer that is not there, or an order that is none of its channels; nothing is changed then.
    """
    for name in (permutation.layer, *permutation.producers):
        if name not in layers:
            raise RelaxPruneError(f"the permutation of {permutation.layer!r} names {name!r}, which is no such layer")
    consumer, producers = layers[permutation.layer], [layers[name] for name in permutation.producers]
    columns = _order(permutation.columns, consumer.shape[1], permutation.layer, undo)
    orders = [_order(permutation.rows, producer.shape[0], producer.name, undo) for producer in producers]
    _reorder(consumer.weight, 0 if consumer.kind == "Conv1D" else 1, columns)
    for producer, rows in zip(producers, orders, strict=True):
        _reorder(producer.weight, 1 if producer.kind == "Conv1D" else 0, rows)
        bias = getattr(producer.module, "bias", None)
        if bias is not None:
            _reorder(bias, 0, rows)


def _order(numbers: tuple[int, ...], size: int, name: str, undo: bool) -> Tensor:
    """Return an order as a tensor, or its inverse; refuse one that is not an order of ``size`` channels."""
    order = torch.tensor(numbers, dtype=torch.int64)
    if sorted(numbers) != list(range(size)):
        raise RelaxPruneError(f"the order of {name!r} must be one of its {size} channels, got {len(numbers)} numbers")
    return order.argsort() if undo else order


def _reorder(parameter: Tensor, dim: int, order: Tensor) -> None:
    """Put the entries of a parameter into another order along one dimension."""
    with torch.no_grad():
        parameter.copy_(parameter.index_select(dim, order.to(parameter.device)))
