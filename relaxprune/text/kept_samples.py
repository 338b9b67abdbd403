"""Windows that a model wrote, kept so that they need not be sampled again: other processors round to other tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from relaxprune.problems.errors import RelaxPruneError

from .mixture import SELF

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .token_windows import TokenWindows


@dataclass(frozen=True)
class ModelSamples:
    """Windows that a model wrote, and how it was asked for them.

    Attributes:
        tokens: (windows, length) int64 on the CPU.
        seed: of the sampling.
        temperature: that divided the logits.
        start_token: first token of each window; None if it was drawn.
    """

    tokens: torch.Tensor
    seed: int
    temperature: float
    start_token: int | None

    @classmethod
    def of(cls, windows: TokenWindows) -> ModelSamples | None:
        """Return those of calibration windows that the model wrote, in their order; None if it wrote none."""
        own = [at for at, kind in enumerate(windows.kinds) if kind == SELF]
        if not own:
            return None
        facts = windows.description.get("parts", {SELF: windows.description})[SELF]
        return cls(windows.tokens[own], facts["seed"], facts["temperature"], facts["start_token"])

    def again(
        self, model: PreTrainedModel, windows: int, length: int, seed: int, temperature: float, start: int | None
    ) -> torch.Tensor:
        """Return the windows in the place of ``sample_windows``, whose arguments it takes.

        Raises:
            RelaxPruneError: others are asked for.
        """
        then = (*self.tokens.shape, self.seed, self.temperature, self.start_token)
        now = (windows, length, seed, temperature, start)
        names = ("windows", "length", "seed", "temperature", "start_token")
        differing = [
            f"{name} was {json.dumps(old)} and is now {json.dumps(new)}"
            for name, old, new in zip(names, then, now, strict=True)
            if old != new
        ]
        if differing:
            raise RelaxPruneError(f"cannot resume with other samples of the model: {'; '.join(differing)}")
        return self.tokens
