"""Where a run's weights and hidden states live, by what they take and how much memory there is."""

from __future__ import annotations

from torch import nn

from relaxprune.costs.residency import choose, needs
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.residency import Residency
from relaxprune.residency.store import store_of
from relaxprune.support.memory import free_bytes, resident_bytes

from .plan import Plan
from .request import PruneRequest

_CACHED = 0.5  # of what is left: estimates are not exact


def placed(plan: Plan, memory_bytes: int, weights: str | None = None) -> Residency:
    """Return where weights and hidden states live in a run with so much memory.

    Args:
        plan: of the run.
        memory_bytes: of the device that it works on; on the CPU what the process has taken by now counts too.
        weights: where weights are to be; None to choose that too.

    Raises:
        RelaxPruneError: the memory is too small for any choice.
    """
    store = store_of(plan.model)
    sizes = plan.memory
    if plan.on_cpu:
        sizes = sizes.beside(max(0, (resident_bytes() or 0) - store.present_bytes(plan.model_bytes)))
    host_memory = None if plan.on_cpu else free_bytes() or 0
    choices = needs(sizes, one_memory=plan.on_cpu)
    found = choose([one for one in choices if weights in (None, one.residency.weights)], memory_bytes, host_memory)
    if store.travels and found.residency.weights != "device":
        store.room_bytes = int(_CACHED * (memory_bytes - found.device_bytes))
    return found.residency


def refuse_whole_passes(model: nn.Module, request: PruneRequest) -> None:
    """Refuse what moves the weights of all blocks at once, if they travel.

    Raises:
        RelaxPruneError: ``refine`` or ``reselect`` is asked for.
    """
    if not request.options.whole_model or not store_of(model).travels:
        return
    if request.options.refine:
        raise RelaxPruneError(
            "refine moves the weights of all blocks together, so that they must be on the device at once, got a model "
            "whose blocks travel: leave out refine (tune moves them block by block), or load the model whole"
        )
    raise RelaxPruneError(
        "reselect chooses the masks of all blocks together, so that they must be on the device at once, got a model "
        "whose blocks travel: leave out reselect, or load the model whole"
    )
