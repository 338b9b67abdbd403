"""What summing a Gram takes: the accumulator's own operations, counted on tensors without values."""

from __future__ import annotations

import functools

import torch

from relaxprune.inputs.gram_accumulator import CHUNK_TOKENS, GramAccumulator
from relaxprune.inputs.shrinkage import shrink

from .counting import counted
from .work import Work

_SHRUNK = 0.5  # any share above 0


@functools.cache
def adding_work(cols: int, tokens: int, dtype: torch.dtype) -> Work:
    """Return the work of adding some tokens of ``cols`` features, in one batch, to a Gram."""
    whole, rest = divmod(tokens, CHUNK_TOKENS)
    found = whole * _chunk_work(cols, CHUNK_TOKENS, dtype)
    return found + _chunk_work(cols, rest, dtype) if rest else found


@functools.cache
def _chunk_work(cols: int, tokens: int, dtype: torch.dtype) -> Work:
    """Return the work of adding a single chunk."""
    sums = GramAccumulator(cols, device="meta")
    with counted() as counter:
        sums.add(torch.empty(tokens, cols, dtype=dtype, device="meta"))
    return counter.work


@functools.cache
def making_work(cols: int) -> Work:
    """Return the work of making a Gram from its sums, and of shrinking it."""
    sums = GramAccumulator(cols, device="meta")
    with counted():
        sums.add(torch.empty(1, cols, device="meta"))
    with counted() as counter:
        shrink(sums.gram(), _SHRUNK)
    return counter.work
