"""Whole models: reading a prompt at once, and going on token by token with the cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relaxprune.models.forward import model_device

from .clock import Clock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelTime:
    """One model.

    Attributes:
        prefill_s: seconds of reading the prompt.
        decode_s: seconds of each token after it; None if the model has no cache.
        weight_bytes: of all weights on the device.
        peak_bytes: what reading the prompt needs beside them; None where the device does not say.
    """

    prefill_s: float
    decode_s: float | None
    weight_bytes: int
    peak_bytes: int | None


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to be measured.

    Attributes:
        logits: reads tokens at once, without a cache.
        model: the same model, for reading token by token; None if it is none of transformers'.
        weight_bytes: of its weights, where they are.
    """

    logits: Callable[[Tensor], Tensor]
    model: PreTrainedModel | None
    weight_bytes: int


def model_times(subjects: Sequence[Subject], tokens: Tensor, new_tokens: int, clock: Clock) -> list[ModelTime]:
    """Measure models in turn.

    Args:
        subjects: the models.
        tokens: (1, prompt) int64 on the CPU.
        new_tokens: how many follow, read one by one by the models that have a cache.
        clock: measures.
    """
    with torch.no_grad():
        reads = [partial(subject.logits, tokens) for subject in subjects]
        prefill = clock.seconds(*reads)
        peaks = [clock.peak_bytes(read) for read in reads]
        works = {
            place: _decoding(subject.model, tokens, new_tokens)
            for place, subject in enumerate(subjects)
            if subject.model is not None
        }
        decode = dict(zip(works, (seconds / new_tokens for seconds in clock.seconds(*works.values())), strict=True))
    return [
        ModelTime(prefill[place], decode.get(place), subject.weight_bytes, peaks[place])
        for place, subject in enumerate(subjects)
    ]


def _decoding(model: PreTrainedModel, tokens: Tensor, new_tokens: int) -> Callable[[], object]:
    """Return a call that reads tokens one by one after a prompt, each time from a copy of the same cache."""
    prompt = tokens.to(model_device(model))
    cache: Any = model(input_ids=prompt, use_cache=True).past_key_values
    token = prompt[:, :1]

    def work() -> None:
        """Read the same token again and again: what it costs does not depend on which it is."""
        own = copy.deepcopy(cache)
        for _ in range(new_tokens):
            own = model(input_ids=token, past_key_values=own, use_cache=True).past_key_values

    return work
