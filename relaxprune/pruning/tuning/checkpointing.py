"""Running blocks again for their gradients, so that the activations of one block are held at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from relaxprune.models.blocks import BlockList


@contextmanager
def checkpointed(model: nn.Module, blocks: BlockList) -> Iterator[None]:
    """Keep of each block's forward pass its inputs only; then every block is as before.

    Args:
        model: holds the blocks; in evaluation mode, where passes draw no random numbers.
        blocks: those that are pruned; the other lists of blocks beside them are taken too.
    """
    others = [block for name in blocks.others for block in model.get_submodule(name).children()]
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for block in dict.fromkeys((*blocks.modules, *others)):
            changed.append((block, vars(block).get("forward")))
            vars(block)["forward"] = _again(block.forward)
        yield
    finally:
        for block, forward in changed:
            del vars(block)["forward"]
            if forward is not None:
                vars(block)["forward"] = forward


def _again(forward: Any) -> Any:
    """Return a forward pass that is run again for its gradients."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
