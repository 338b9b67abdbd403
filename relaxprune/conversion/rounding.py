"""By how much rounding to a float dtype may change a value."""

from __future__ import annotations

import torch
from torch import Tensor


def half_unit(weight: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """Return half a unit of the last place of a dtype at each entry: the most that rounding to it changes.

    Args:
        weight: any float tensor.
        dtype: what it is rounded to.
        scale: what entries are divided by before, broadcast over ``weight``; 1 if None.

    Returns:
        float64, in the shape of ``weight``.
    """
    size = weight.double().abs()
    facts = torch.finfo(dtype)
    unit = 1.0 if scale is None else scale.double()
    # Below the least normal number the distance of neighbours no longer shrinks.
    return unit * torch.clamp(size / unit, min=facts.tiny) * facts.eps / 2
