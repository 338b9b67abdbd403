"""Seconds of calls, with the device waited for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_LEAST_S = 0.005  # shorter calls are repeated within one measurement


@dataclass(frozen=True)
class Clock:
    """Measures calls on a device.

    Attributes:
        device: where the calls compute.
        repeats: measurements, whose median counts.
    """

    device: torch.device
    repeats: int

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)

    def seconds(self, *works: Callable[[], object]) -> tuple[float, ...]:
        """Return the median seconds of each call, after one of each that does not count.

        They are measured in turn, so that what else the machine does meets all of them.
        """
        calls = []
        for work in works:
            work()
            calls.append(max(1, round(_LEAST_S / max(self._once(work, 1), 1e-7))))
        rounds = [[self._once(*pair) for pair in zip(works, calls, strict=True)] for _ in range(self.repeats)]
        return tuple(statistics.median(times) for times in zip(*rounds, strict=True))

    def _once(self, work: Callable[[], object], calls: int) -> float:
        """Return the mean seconds of some calls in a row."""
        self.wait()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        self.wait()
        return (time.perf_counter() - started) / calls

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        """Return how many bytes a call needs on the device beyond those that are there; None where it does not say."""
        if self.device.type == "cpu":
            return None
        memory = torch.get_device_module(self.device)
        self.wait()
        memory.reset_peak_memory_stats(self.device)
        before = int(memory.memory_allocated(self.device))
        work()
        self.wait()
        return int(memory.max_memory_allocated(self.device)) - before
