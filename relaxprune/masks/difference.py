"""Two sets of masks: what they have in common, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from relaxprune.problems.errors import RelaxPruneError


@dataclass(frozen=True)
class LayerOverlap:
    """What two masks of one weight have in common.

    Attributes:
        name: the parameter's name.
        entries: number of entries of each mask.
        both, first_only, second_only: entries kept by both masks, and by one of them only.
        rows_that_differ: rows in which any entry differs.
    """

    name: str
    entries: int
    both: int
    first_only: int
    second_only: int
    rows_that_differ: int

    @property
    def jaccard(self) -> float:
        """Kept by both over kept by either; 1 if neither keeps anything."""
        return _jaccard(self.both, self.first_only + self.second_only)

    @property
    def agreement(self) -> float:
        """Share of entries on which the masks agree."""
        return 1 - (self.first_only + self.second_only) / self.entries if self.entries else 1.0


@dataclass(frozen=True)
class Overlap:
    """What two sets of masks have in common.

    Attributes:
        layers: weights that have a mask in both sets.
        first_only, second_only: names of weights that have a mask in one set only.
    """

    layers: list[LayerOverlap]
    first_only: list[str]
    second_only: list[str]

    @property
    def jaccard(self) -> float:
        """Kept by both over kept by either, over all entries of the layers in both; 1 if there are none."""
        differ = sum(layer.first_only + layer.second_only for layer in self.layers)
        return _jaccard(sum(layer.both for layer in self.layers), differ)

    @property
    def agreement(self) -> float:
        """Share of entries on which the masks agree; 1 if there are none."""
        entries = sum(layer.entries for layer in self.layers)
        differ = sum(layer.first_only + layer.second_only for layer in self.layers)
        return 1 - differ / entries if entries else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        layers = [{**asdict(item), "jaccard": item.jaccard, "agreement": item.agreement} for item in self.layers]
        return {
            "jaccard": self.jaccard,
            "agreement": self.agreement,
            "layers": layers,
            "first_only": self.first_only,
            "second_only": self.second_only,
        }


def compare_masks(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Overlap:
    """Compare the masks that two sets have for the same weights.

    Raises:
        RelaxPruneError: masks of one name have different shapes.
    """
    layers = []
    for name in (name for name in first if name in second):
        one, other = first[name], second[name]
        if one.shape != other.shape:
            raise RelaxPruneError(
                f"masks of {name!r} have shapes {tuple(one.shape)} and {tuple(other.shape)}: these are different models"
            )
        differ = one ^ other
        rows = int(differ.reshape(-1, one.shape[-1]).any(1).sum()) if one.numel() else 0
        layers.append(
            LayerOverlap(
                name,
                one.numel(),
                int((one & other).sum()),
                int((one & differ).sum()),
                int((other & differ).sum()),
                rows,
            )
        )
    return Overlap(
        layers, [name for name in first if name not in second], [name for name in second if name not in first]
    )


def _jaccard(both: int, differ: int) -> float:
    """Return kept by both over kept by either."""
    return both / (both + differ) if both + differ else 1.0
