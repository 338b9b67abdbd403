"""Where a run's weights and hidden states live, by what they take and how much memory there is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency import Residency
from relaxprune.residency.block_store import BlockStore
from relaxprune.residency.store import store_of
from relaxprune.support.memory import free_bytes, resident_bytes

from .plan import Plan
from .request import PruneRequest

_CACHED = 0.5  # of what is left: estimates are not exact


@dataclass(frozen=True, kw_only=True)
class RunBytes:
    """The bytes of what a run holds, without the interpreter and its libraries.

    Attributes:
        model: all parameters.
        travelling: parameters outside of the blocks, a block, and the one after it.
        states: hidden states of all tokens, and as much again while they are made.
        working: sums of one block, and what solving takes.
    """

    model: int
    travelling: int
    states: int
    working: int


def choose_residency(sizes: RunBytes, device_memory: int | None, host_memory: int | None) -> Residency:
    """Return the fastest residency that fits: weights give way before hidden states.

    Args:
        sizes: of the parts of the run.
        device_memory: bytes of the device, None for no bound.
        host_memory: bytes of the host's memory; None if the device computes in it, so that ``device_memory`` is all.

    Raises:
        RelaxPruneError: none fits.
    """
    if device_memory is None:
        return Residency()
    left = device_memory - sizes.working
    beside = [] if host_memory is None else ["cpu"]
    for states, kept in (("device", sizes.states), *((place, 0) for place in [*beside, "disk"])):
        used = sizes.states if states == "cpu" else 0
        for weights in ("device", *beside, "disk"):
            held = sizes.model if weights == "device" else sizes.travelling
            host = used + (sizes.model if weights == "cpu" else 0)
            if held + kept <= left and host <= (host_memory or 0):
                return Residency(weights, states, device_memory)
    raise RelaxPruneError(
        f"memory must hold a block, the next one and what solving takes, {sizes.travelling + sizes.working:,} bytes, "
        f"got {device_memory:,}: give more, fewer calibration windows, or memory_budget_bytes"
    )


def placed(plan: Plan, memory_bytes: int, weights: str | None = None) -> Residency:
    """Return where weights and hidden states live in a run with so much memory.

    Args:
        plan: of the run.
        memory_bytes: of the device that it works on; on the CPU what the process has taken by now counts too.
        weights: where weights are to be; None to choose that too.

    Raises:
        RelaxPruneError: the memory is too small for any choice.
    """
    store, on_cpu = store_of(plan.model), plan.weights[0].weight.device.type == "cpu"
    travelling = store.held_bytes(plan.model_bytes)
    apart = (resident_bytes() or 0) - store.present_bytes(plan.model_bytes) if on_cpu else 0
    sizes = RunBytes(
        model=travelling if weights in ("cpu", "disk") else plan.model_bytes,
        travelling=travelling,
        states=plan.states_bytes,
        working=plan.working_bytes - plan.states_bytes + max(0, apart),
    )
    found = choose_residency(sizes, memory_bytes, None if on_cpu else free_bytes() or 0)
    found = found if weights is None else replace(found, weights=weights)
    if isinstance(store, BlockStore) and found.weights != "device":
        states = sizes.states if found.states == "device" else 0
        store.room_bytes = int(_CACHED * (memory_bytes - travelling - sizes.working - states))
    return found


def refuse_whole_passes(model: nn.Module, request: PruneRequest) -> None:
    """Refuse what needs all weights of a model at once, if its blocks travel.

    Raises:
        RelaxPruneError: naming the option.
    """
    if not store_of(model).travels:
        return
    if request.options.refine:
        raise RelaxPruneError(
            "refine moves the weights of all blocks together, so that they must be on the device at once, got a model "
            "whose blocks travel: leave out refine (tune moves them block by block), or load the model whole"
        )
    if request.target.sharing.kind == "model":
        raise RelaxPruneError(
            "allocation 'model' takes gradients through all blocks, so that they must be on the device at once, got a "
            "model whose blocks travel: give 'owl' or 'uniform', or load the model whole"
        )
