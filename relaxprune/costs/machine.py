"""What a run is carried out on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relaxprune.problems.checks import positive_number, whole_number

from .work import Rates


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run is carried out on.

    Attributes:
        devices: how many, each with a process of its own.
        device_memory: bytes of each; None for no bound.
        host_memory: bytes of the host's memory for each of them; None if the devices compute in it.
        rates: of each; None to measure the processor of this process.
        network: bytes a second that each receives; None to leave the network's time out.
    """

    devices: int = 1
    device_memory: int | None = None
    host_memory: int | None = None
    rates: Rates | None = None
    network: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            RelaxPruneError: naming the number.
        """
        whole_number("devices", self.devices, 1)
        for name in ("device_memory", "host_memory", "network"):
            if getattr(self, name) is not None:
                positive_number(name, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the rates."""
        return {name: value for name, value in vars(self).items() if name != "rates"}
