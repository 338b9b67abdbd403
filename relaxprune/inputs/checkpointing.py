"""Running blocks again for their gradients, so that the activations of one block are held at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from relaxprune.models.blocks import BlockList
from relaxprune.residency.store import Whole, store_of
from relaxprune.support.forwards import replaced_forwards


@contextmanager
def checkpointed(model: nn.Module, blocks: BlockList) -> Iterator[None]:
    """Keep of each block's forward pass its inputs only; then every block is as before.

    Args:
        model: holds the blocks; in evaluation mode, where passes draw no random numbers. Blocks that travel come again
            when a gradient goes back through them.
        blocks: those that are pruned; the other lists of blocks beside them are taken too.
    """
    store = store_of(model)
    others = [block for name in blocks.others for block in model.get_submodule(name).children()]
    again = {block: _again(block.forward) for block in others}
    again |= {block: _again(_resident(store, index, block.forward)) for index, block in enumerate(blocks.modules)}
    with replaced_forwards(again):
        yield


@contextmanager
def flowing(model: nn.Module) -> Iterator[None]:
    """Let gradients flow, inside, whatever the model's own parameters say."""
    frozen = [item for item in model.parameters() if item.is_floating_point() and not item.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _resident(store: Whole, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward pass that has its block on the device."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with store.resident(index):
            return forward(*args, **kwargs)

    return run


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward pass that is run again for its gradients."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
