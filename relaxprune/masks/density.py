"""How the weights that masks keep are spread over rows, columns and attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from relaxprune.models.layer_roles import role_of

# The projections whose rows, or columns, belong to attention heads, and where a configuration states their number.
_HEAD_ROWS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads", "v_proj": "num_key_value_heads"}
_HEAD_COLS = {"o_proj": "num_attention_heads"}


@dataclass(frozen=True)
class Density:
    """Shares of the weights that one mask keeps.

    Attributes:
        kept: of the whole mask.
        rows: of (bins of neighbouring) rows.
        cols: of (bins of neighbouring) columns.
        row_range, col_range: smallest and largest of any single row, of any single column.
        heads: of each attention head's rows (columns of the output projection); empty if the configuration does not
            say which they are.
    """

    kept: float
    rows: list[float]
    cols: list[float]
    row_range: tuple[float, float]
    col_range: tuple[float, float]
    heads: list[float]


def density(name: str, mask: Tensor, config: Mapping[str, Any], bins: int = 96) -> Density:
    """Return the density of a mask (rows, cols) of the module ``name``, in at most ``bins`` bins each way."""
    kept = mask.double()
    rows, cols = kept.mean(1), kept.mean(0)
    return Density(
        kept=float(kept.mean()),
        rows=_binned(rows, bins),
        cols=_binned(cols, bins),
        row_range=(float(rows.min()), float(rows.max())),
        col_range=(float(cols.min()), float(cols.max())),
        heads=_heads(role_of(name), rows, cols, config),
    )


def grid(mask: Tensor, group: int = 1, cells: int = 48) -> list[list[float]]:
    """Return the shares that a mask (rows, cols) keeps in the cells of a grid, at most ``cells`` a side.

    Args:
        mask: True = kept.
        group: M of an N:M pattern. Cells hold whole groups: otherwise a picture would show where cells cut groups.
        cells: the maximum on a side.
    """
    rows, cols = mask.shape
    high, wide = -(-rows // cells), -(-cols // cells)
    wide = -(-wide // group) * group
    bands = torch.stack([band.mean(0) for band in mask.double().split(high)])  # (bands, cols)
    shares = torch.stack([part.mean(1) for part in bands.split(wide, dim=1)], dim=1)  # (bands, parts)
    return [[round(value, 4) for value in row] for row in shares.tolist()]


def _heads(role: str, rows: Tensor, cols: Tensor, config: Mapping[str, Any]) -> list[float]:
    """Return the kept share of each head, from those of rows and columns."""
    key = _HEAD_ROWS.get(role) or _HEAD_COLS.get(role)
    shares = rows if role in _HEAD_ROWS else cols
    heads, size = config.get(key or ""), config.get("head_dim") or _head_size(config)
    # Some models put more into these rows than the heads (gates, say): then return nothing.
    if not isinstance(heads, int) or not isinstance(size, int) or heads < 1 or len(shares) != heads * size:
        return []
    return [float(value) for value in shares.reshape(heads, -1).mean(1)]


def _head_size(config: Mapping[str, Any]) -> int | None:
    """Return the width of a head if the configuration implies it by the number of heads alone."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads == 0:
        return width // heads
    return None


def _binned(shares: Tensor, bins: int) -> list[float]:
    """Return means of neighbours, at most ``bins`` of them."""
    count = min(bins, len(shares))
    edges = [index * len(shares) // count for index in range(count + 1)]
    return [float(shares[start:end].mean()) for start, end in pairwise(edges)]
