"""Parameters whose values lie elsewhere for now: what stands in for them, and how they are read.

Such a parameter keeps its identity, shape, dtype and device. Its entries are one NaN without memory of its own, so that
whatever computes with it by mistake shows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_HOME = "_relaxprune_home"


@dataclass(eq=False)
class Home:
    """Where a parameter's values are while it does not hold them.

    Attributes:
        read: returns them, on the parameter's device.
        empty: what the parameter holds instead.
        here: whether it holds its values now.
    """

    read: Callable[[], Tensor]
    empty: Tensor
    here: bool = False

    def fill(self, parameter: Tensor, values: Tensor) -> None:
        """Give a parameter its values."""
        parameter.data = values
        self.here = True

    def clear(self, parameter: Tensor) -> None:
        """Take a parameter's values away."""
        parameter.data = self.empty
        self.here = False


def empty_like(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of the same shape that has no memory but for one entry, NaN."""
    value = float("nan") if dtype.is_floating_point else 0
    return torch.full((), value, dtype=dtype, device=device).expand(tensor.shape)


def settle(parameter: nn.Parameter, home: Home) -> None:
    """Tell a parameter where its values are."""
    setattr(parameter, _HOME, home)


def home_of(parameter: Tensor) -> Home | None:
    """Return where a parameter's values are; None for one that holds them for good."""
    home = getattr(parameter, _HOME, None)
    return home if isinstance(home, Home) else None


def is_away(parameter: Tensor) -> bool:
    """Return whether a parameter's values are elsewhere now."""
    home = home_of(parameter)
    return home is not None and not home.here


def values_of(parameter: Tensor) -> Tensor:
    """Return a parameter's values, detached: its own, or a copy that is read from where they are."""
    home = home_of(parameter)
    return parameter.detach() if home is None or home.here else home.read()
