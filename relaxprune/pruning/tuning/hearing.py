"""What one module reads or puts out in a forward pass of a larger one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from relaxprune.inputs.tree import flatten


class _Reached(BaseException):
    """Leaves a forward pass where enough was heard; no Exception, so no model code catches it."""


@contextmanager
def heard_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Hear the first tensor of every call of a module."""
    heard: list[Tensor] = []

    def hear(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard.append(flatten((args, kwargs))[0][0])

    handle = module.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield heard
    finally:
        handle.remove()


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return the first tensor that a module is called with in a pass, which ends there."""

    def stop(_module: nn.Module, _args: object) -> None:
        raise _Reached

    with heard_inputs(module) as heard:
        handle = module.register_forward_pre_hook(stop)
        try:
            with suppress(_Reached):
                run()
        finally:
            handle.remove()
    return heard[0]


def outputs_of(module: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """Return the tensors that a module puts out in a pass, which ends there; none if the pass does not call it."""
    heard: list[Tensor] = []

    def hear(_module: nn.Module, _args: object, output: Any) -> None:
        heard.extend(flatten(output)[0])
        raise _Reached

    handle = module.register_forward_hook(hear)
    try:
        with suppress(_Reached):
            run()
    finally:
        handle.remove()
    return heard
