"""What a measurement of speed does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from relaxprune.problems.checks import check_device, whole_number
from relaxprune.problems.errors import RelaxPruneError


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What is measured, and how often.

    Attributes:
        device: a ``torch.device`` name; None for the accelerator that is there, else the CPU.
        tokens: numbers of tokens that a layer is given at once.
        prompt: tokens of the prompt, read at once by the whole model.
        new_tokens: tokens that follow it, read one by one with the cache.
        repeats: measurements of each number, whose median counts.

    Raises:
        RelaxPruneError: naming the first value that makes no sense.
    """

    device: str | None = None
    tokens: tuple[int, ...] = (1, 16, 128, 512, 2048)
    prompt: int = 512
    new_tokens: int = 16
    repeats: int = 5

    def __post_init__(self) -> None:
        if self.device is not None:
            check_device(self.device)
        if not self.tokens:
            raise RelaxPruneError("tokens must hold at least one number of tokens, got none")
        for count in self.tokens:
            whole_number("tokens", count, 1)
        for name in ("prompt", "new_tokens", "repeats"):
            whole_number(name, getattr(self, name), 1)

    @property
    def place(self) -> torch.device:
        """The device itself."""
        if self.device is not None:
            return torch.device(self.device)
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
