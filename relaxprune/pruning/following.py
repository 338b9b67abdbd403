"""Ranks that each have computed the same by themselves take what the leader has, for rounding may tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from relaxprune.models.layers import PrunableLayer
from relaxprune.ranks.ranks import Ranks


def leader_masks(ranks: Ranks, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the leader's masks; all ranks have masks of the same parameters."""
    return masks if ranks.alone else {name: ranks.from_leader(partial(masks.__getitem__, name)) for name in masks}


def follow_leader(ranks: Ranks, layers: Sequence[PrunableLayer], masks: Mapping[str, Tensor]) -> None:
    """Write the leader's weights into some layers, with masks (rows, cols) by parameter name."""
    for layer in () if ranks.alone else layers:
        values = ranks.from_leader(layer.matrix().cpu)
        layer.write(masks[layer.parameter], values)
