"""Modules that call something else, or something besides, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Have modules call something else, inside; hooks on them stay, and a ``forward`` of their own comes back."""
    own = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, before in own.items():
            vars(module).pop("forward", None)
            if before is not None:
                vars(module)["forward"] = before


@contextmanager
def hooked_forwards(
    hooks: Iterable[tuple[nn.Module, Callable[..., Any]]], *, with_kwargs: bool = False
) -> Iterator[None]:
    """Have forward hooks on modules, inside; they are taken off whatever happens.

    Args:
        hooks: modules, each with its hook.
        with_kwargs: whether hooks are called with the keyword arguments as well.
    """
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook, with_kwargs=with_kwargs).remove)
        yield
