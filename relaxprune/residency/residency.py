"""What a run is told about memory: where weights and hidden states live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from relaxprune.problems.checks import one_of

PLACES = ("device", "cpu", "disk")


@dataclass(frozen=True)
class Residency:
    """Where things live while they are not worked on; no answer depends on it.

    Attributes:
        weights: of the blocks: "device" for a whole model, "cpu" in memory beside an accelerator, or "disk", from
            where each block is read when its turn comes.
        states: hidden states between two blocks: "device", "cpu" in memory beside an accelerator, or "disk".
        folder: for ``states`` on disk, which get a folder of their own in it; None for the system's folder of temporary
            files.
    """

    weights: str = "device"
    states: str = "device"
    folder: Path | None = None

    def __post_init__(self) -> None:
        """Refuse unknown places.

        Raises:
            RelaxPruneError: naming the field.
        """
        one_of("weights", self.weights, PLACES)
        one_of("states", self.states, PLACES)

    def __str__(self) -> str:
        """Say it in one line."""
        words = {"device": "on the device", "cpu": "in memory", "disk": "on disk"}
        return f"weights {words[self.weights]}, hidden states {words[self.states]}"
