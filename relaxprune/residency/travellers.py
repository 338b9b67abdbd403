"""Parameters that travel, and which of them come and go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

REST = -1
"""The unit of all tensors outside of the blocks, which never leaves."""


@dataclass(frozen=True)
class Traveller:
    """A parameter that travels.

    Attributes:
        parameter: it.
        name: under which the source has it.
        dtype: what it is computed in; None for the dtype that it is stored in.
    """

    parameter: nn.Parameter
    name: str
    dtype: torch.dtype | None


def units_of(
    travellers: Iterable[Traveller], places: Mapping[int, int | None], blocks: int
) -> dict[int, list[Traveller]]:
    """Return the parameters of each of some blocks, and under ``REST`` those that lie outside, or in several.

    Args:
        travellers: all of a model's.
        places: ``id`` of a parameter -> its block, None for no block or several.
        blocks: how many there are.
    """
    units: dict[int, list[Traveller]] = {index: [] for index in (REST, *range(blocks))}
    for one in travellers:
        place = places[id(one.parameter)]
        units[REST if place is None else place].append(one)
    return units
