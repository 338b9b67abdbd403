"""A limit on the model that a configuration describes, kept while it is made: no more than its checkpoint can fill.

A configuration is a few numbers, and one wrong digit asks for a model of terabytes, or of billions of layers. What a
checkpoint holds bounds what can be right, whatever the family calls its numbers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from relaxprune.problems.errors import RelaxPruneError

_ALWAYS_ELEMENTS = 2**28  # 1 GiB in float32
_ALWAYS_TENSORS = 1000
_TIMES_ELEMENTS = 2  # tied tensors are stored once and made twice
_TIMES_TENSORS = 4  # what is made of tensors that are stored fused


@contextmanager
def limited(elements: int, pieces: int | None) -> Iterator[None]:
    """Refuse, inside, to make a model that is far larger than what a checkpoint holds.

    Args:
        elements: of all stored tensors.
        pieces: how many tensors are stored, stacks of them counted as what they can be split into; None for no limit.

    Raises:
        RelaxPruneError: as soon as a parameter or buffer is one too many; from inside the body.
    """
    most = max(_ALWAYS_ELEMENTS, _TIMES_ELEMENTS * elements)
    most_tensors = math.inf if pieces is None else _ALWAYS_TENSORS + _TIMES_TENSORS * pieces
    thread, total = threading.get_ident(), 0
    made: dict[int, Tensor] = {}  # held, so that no other one gets its number

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal total
        # A model is described first, on no device; its values come later.
        if tensor is None or not tensor.is_meta or id(tensor) in made or threading.get_ident() != thread:
            return
        made[id(tensor)] = tensor
        total += tensor.numel()
        if total > most or len(made) > most_tensors:
            raise RelaxPruneError(
                f"its configuration describes a model of at least {total} weights in {len(made)} tensors, and the "
                f"checkpoint has {elements} weights: fetch it again"
            )

    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
