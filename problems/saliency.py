"""One-shot scores of how much a weight matters."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .checks import one_of

Saliency = Literal["magnitude", "wanda", "ria"]
SALIENCIES: tuple[str, ...] = get_args(Saliency)


def saliency(
    name: str, weight: Tensor, gram_diagonal: Tensor, power: float = 0.5, column_sums: Tensor | None = None
) -> Tensor:
    """Score every weight; larger matters more.

    - ``magnitude``: |W_ij|.
    - ``wanda``: |W_ij| sqrt(G_jj) (Sun et al., arXiv 2306.11695).
    - ``ria``: (|W_ij| / column sum + |W_ij| / row sum) G_jj^(power/2), sums over all rows and columns of the weight
      (Zhang et al., ICLR 2024); a row or column of zeros scores 0.

    Args:
        name: one of the above.
        weight: (rows, cols).
        gram_diagonal: (cols,), the mean squared input of each column.
        power: exponent of the activation norm in RIA; 0.5 by default, 1 in SparseFW's text.
        column_sums: (cols,) float64, RIA's sums of |W| over all rows if ``weight`` holds only some of them, or None.

    Returns:
        (rows, cols) float64.
    """
    magnitude = weight.to(torch.float64).abs()
    if name == "magnitude":
        return magnitude
    norm = gram_diagonal.to(torch.float64)
    if name == "wanda":
        return magnitude * norm.sqrt()
    one_of("saliency", name, SALIENCIES)
    column = magnitude.sum(dim=0) if column_sums is None else column_sums
    row = magnitude.sum(dim=1, keepdim=True)
    tiny = torch.finfo(torch.float64).tiny
    relative = magnitude / column.clamp_min(tiny) + magnitude / row.clamp_min(tiny)
    return relative * norm ** (power / 2)
