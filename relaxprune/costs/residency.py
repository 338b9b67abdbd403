"""Where a run keeps weights and hidden states, and the memory that each choice needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency import PLACES, Residency

from .memory import RunBytes

DEVICE, CPU, DISK = PLACES
# From the fastest: every weight travels once, hidden states at every block, so weights give way first.
_CHOICES = tuple((weights, states) for states in PLACES for weights in PLACES)


@dataclass(frozen=True)
class Need:
    """The memory that a residency needs.

    Attributes:
        residency: where weights and states are.
        device_bytes: of the device.
        host_bytes: of the host, without the interpreter; 0 if the device is the host's own memory.
    """

    residency: Residency
    device_bytes: int
    host_bytes: int

    def fits(self, device_memory: int | None, host_memory: int | None) -> bool:
        """Return whether both memories suffice; None is one without a bound."""
        pairs = ((self.device_bytes, device_memory), (self.host_bytes, host_memory))
        return all(bound is None or needed <= bound for needed, bound in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers."""
        kept = {"weights": self.residency.weights, "states": self.residency.states}
        return {**kept, "device_bytes": self.device_bytes, "host_bytes": self.host_bytes}


def needs(sizes: RunBytes, *, one_memory: bool = False, whole: bool = False) -> list[Need]:
    """Return what every possible residency needs, from the fastest to the slowest.

    Args:
        sizes: of the parts.
        one_memory: whether the device computes in the host's memory; then nothing is kept "cpu".
        whole: whether weights must stay on the device, as they must where the whole model is refined.
    """
    return [
        need(sizes, Residency(weights, states), one_memory=one_memory)
        for weights, states in _CHOICES
        if not (one_memory and CPU in (weights, states)) and (weights == DEVICE or not (whole or sizes.refining))
    ]


def need(sizes: RunBytes, residency: Residency, *, one_memory: bool = False) -> Need:
    """Return the memory that a residency needs.

    On the device: what solving takes; the model, or two blocks of it and what lies outside of the blocks; the hidden
    states of all tokens, or of those that go through the model at once. In the host's memory: what is kept there, and
    the records of finished blocks, of one if weights are on disk.

    Args:
        sizes: of the parts.
        residency: where weights and hidden states live.
        one_memory: whether the device computes in the host's memory.
    """
    weights, states = residency.weights, residency.states
    working = sizes.working + (sizes.states if states == DEVICE else min(sizes.states, sizes.batch_states))
    working = max(working, sizes.refining, sizes.allocating) + (sizes.predictions if states == DEVICE else 0)
    on_device = working + (sizes.model if weights == DEVICE else sizes.travelling)
    on_host = sizes.block_records if weights == DISK else sizes.records
    on_host += (sizes.model if weights == CPU else 0) + (sizes.states if states == CPU else 0)
    return Need(residency, on_device + on_host, 0) if one_memory else Need(residency, on_device, on_host)


def choose_residency(sizes: RunBytes, device_memory: int | None, host_memory: int | None) -> Residency:
    """Return the fastest residency that fits.

    Weights give way before hidden states: every weight travels once, hidden states at every block.

    Args:
        sizes: of the parts of the run.
        device_memory: bytes of the device, None for no bound.
        host_memory: bytes of the host's memory; None if the device computes in it, so that ``device_memory`` is all.

    Raises:
        RelaxPruneError: none fits.
    """
    return choose(needs(sizes, one_memory=host_memory is None), device_memory, host_memory).residency


def choose(choices: list[Need], device_memory: int | None, host_memory: int | None) -> Need:
    """Return the first of some needs that fits.

    Raises:
        RelaxPruneError: none does.
    """
    for need in choices:
        if need.fits(device_memory, host_memory):
            return need
    least = min(choices, key=lambda need: need.device_bytes)
    held = "the whole model" if least.residency.weights == DEVICE else "a block and the next one"
    host = "" if host_memory is None else f", and {least.host_bytes:,} of the host"
    given = "" if host_memory is None else f" and {host_memory:,}"
    raise RelaxPruneError(
        f"memory must hold {held} and what the run takes beside, {least.device_bytes:,} bytes{host}, got "
        f"{device_memory or 0:,}{given}: give more, or shorter calibration windows, or fewer"
    )
