"""How fast this machine is, from a fraction of a second of products, passes and small operations."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .work import Rates

_PRODUCT = (512, 1024)  # tokens and columns of the product that is timed
_PASS_ENTRIES = 2**21  # float32: 8 MiB, more than most caches give one thread
_SMALL_OPERATIONS = 500
_REPEATS = 5

Clock = Callable[[], float]


def measured_rates(dtype: torch.dtype = torch.float32, clock: Clock = time.perf_counter) -> Rates:
    """Measure the processor of this process, with the threads that torch uses.

    Args:
        dtype: of the model; products in 16-bit dtypes are measured only if it is one.
        clock: seconds.
    """
    flops = _product_rate(torch.float32, clock)
    return Rates(
        flops=flops,
        half_flops=_product_rate(dtype, clock) if dtype.itemsize == 2 else flops,
        bandwidth=_pass_rate(clock),
        launch_seconds=_launch_seconds(clock),
    )


def _product_rate(dtype: torch.dtype, clock: Clock) -> float:
    """Return the operations a second of a product in a dtype."""
    tokens, cols = _PRODUCT
    one, other = torch.ones(tokens, cols, dtype=dtype), torch.ones(cols, cols, dtype=dtype)
    return 2 * tokens * cols**2 / _typical(lambda: one @ other, clock)


def _pass_rate(clock: Clock) -> float:
    """Return the bytes a second of a sum of two tensors."""
    one, other = torch.ones(_PASS_ENTRIES), torch.ones(_PASS_ENTRIES)
    out = torch.empty(_PASS_ENTRIES)
    return 3 * 4 * _PASS_ENTRIES / _typical(lambda: torch.add(one, other, out=out), clock)


def _launch_seconds(clock: Clock) -> float:
    """Return the seconds of an operation on next to nothing."""
    one = torch.ones(8)

    def small() -> None:
        for _ in range(_SMALL_OPERATIONS):
            one.add_(1.0)

    return _typical(small, clock) / _SMALL_OPERATIONS


def _typical(work: Callable[[], object], clock: Clock) -> float:
    """Return the seconds of the median of a few calls, after one that does not count."""
    work()
    times = []
    for _ in range(_REPEATS):
        started = clock()
        work()
        times.append(clock() - started)
    return sorted(times)[_REPEATS // 2]
