"""What a stage of a run computes and moves, and the seconds that a machine takes for it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from relaxprune.problems.checks import positive_number

_LAUNCH_SECONDS = 5e-6  # of one operation on an accelerator, if nothing else is known


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work that is done one operation after the other.

    Attributes:
        flops: operations of products and factorisations in float32; those in float64 count twice.
        half_flops: the same in 16-bit dtypes.
        bytes: read and written by all other operations, as if no cache kept any of it.
        launches: number of operations.
    """

    flops: float = 0.0
    half_flops: float = 0.0
    bytes: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)})

    def __mul__(self, times: float) -> Work:
        return Work(**{item.name: times * getattr(self, item.name) for item in fields(self)})

    __rmul__ = __mul__

    def to_dict(self) -> dict[str, float]:
        """Return the numbers."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


NOTHING = Work()


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a device works.

    Attributes:
        flops: operations of products in float32, a second.
        half_flops: the same in 16-bit dtypes.
        bandwidth: bytes that passes over tensors read and write, a second.
        launch_seconds: what an operation takes beyond that.
    """

    flops: float
    half_flops: float
    bandwidth: float
    launch_seconds: float = _LAUNCH_SECONDS

    def __post_init__(self) -> None:
        """Refuse what is no rate.

        Raises:
            RelaxPruneError: naming the rate.
        """
        for name in ("flops", "half_flops", "bandwidth"):
            positive_number(name, getattr(self, name))

    def seconds(self, work: Work) -> float:
        """Return flops / F + half_flops / H + bytes / B + launches · L: nothing overlaps."""
        return (
            work.flops / self.flops
            + work.half_flops / self.half_flops
            + work.bytes / self.bandwidth
            + work.launches * self.launch_seconds
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the rates."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
