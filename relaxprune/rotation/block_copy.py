"""A copy of one block in float64, to find out and to prove on it what may be rotated; the model itself is not touched.

The gains and biases of the copy are changed at random, so that what holds for it holds whatever their values are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.inputs.tree import flatten, map_tree
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.forwards import hooked_forwards
from relaxprune.support.sentences import first_line

# Norms and routers of transformers compute in float32 whatever they are given: what that rounds may be explained.
TOLERANCE = 7e-5
_JITTER = 0.3


@dataclass(frozen=True, eq=False)
class BlockCall:
    """What a block was called with, and the hidden states that came out.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        output: (..., tokens, width).
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def stream(self) -> Tensor | None:
        """The hidden states that went in, (..., tokens, width); None if they are no tensor where blocks have them."""
        found = self.args[0] if self.args else self.kwargs.get("hidden_states")
        return found if isinstance(found, Tensor) and found.is_floating_point() else None

    def with_stream(self, stream: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with other hidden states."""
        if self.args:
            return (stream, *self.args[1:]), self.kwargs
        return (), {**self.kwargs, "hidden_states": stream}

    def in_float64(self) -> BlockCall:
        """Return a copy with every number with a point in float64."""

        def cast(leaf: Tensor) -> Tensor:
            return leaf.detach().to(torch.float64) if leaf.is_floating_point() else leaf.detach().clone()

        args, kwargs = map_tree((self.args, self.kwargs), Tensor, cast)
        return BlockCall(args, kwargs, cast(self.output))


def record_calls(blocks: Sequence[nn.Module], run: Callable[[], object]) -> list[BlockCall | None]:
    """Run a model and return the first call of each of its blocks; None for one that is not called."""
    calls: list[BlockCall | None] = [None] * len(blocks)

    def note(index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if calls[index] is None and isinstance(states, Tensor):
                calls[index] = BlockCall(args, dict(kwargs), states.detach())

        return hook

    with hooked_forwards(((block, note(i)) for i, block in enumerate(blocks)), with_kwargs=True):
        run()
    return calls


class BlockCopy:
    """A block in float64 with random gains and biases, and the call that it answers.

    Attributes:
        block: the copy.
        call: what it is called with.
        name: of the block in the model, for messages.
    """

    def __init__(self, block: nn.Module, call: BlockCall, name: str) -> None:
        """Copy a block, one call of which is known."""
        self.name = name
        self.block = copy.deepcopy(block).to(torch.float64).eval()
        self.call = call.in_float64()
        generator = torch.Generator().manual_seed(0)
        for parameter in self.block.parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
                parameter.data += _JITTER * noise.to(parameter.device)

    def run(self, stream: Tensor | None = None) -> Tensor:
        """Return the hidden states that come out, for other ones that go in if given.

        Raises:
            RelaxPruneError: the block does not run in float64.
        """
        args, kwargs = (self.call.args, self.call.kwargs) if stream is None else self.call.with_stream(stream)
        try:
            with torch.no_grad():
                output = self.block(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RelaxPruneError(
                f"block {self.name!r} must run in float64 to prove that it may be rotated, got {first_line(error)!r}: "
                "load the model with attn_implementation='eager'"
            ) from error
        states = output[0] if isinstance(output, tuple) else output
        assert isinstance(states, Tensor)
        return states

    def calls(self, replaced: Mapping[str, Callable[[Tensor], Tensor]]) -> tuple[Tensor, list[ModuleCall]]:
        """Run the block with the outputs of some modules replaced; return what comes out, and every module's calls."""
        seen: list[ModuleCall] = []
        with self._hooked(seen, replaced):
            return self.run(), seen

    @contextmanager
    def _hooked(self, seen: list[ModuleCall], replaced: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                given = output
                if name in replaced and isinstance(output, Tensor):
                    given = replaced[name](output)
                seen.append(ModuleCall(name, module, tuple(flatten((args, kwargs))[0]), given))
                return given

            return hook

        hooks = ((module, note(name)) for name, module in self.block.named_modules() if name)
        with hooked_forwards(hooks, with_kwargs=True):
            yield


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module in a block.

    Attributes:
        name: of the module, in the block.
        module: itself.
        inputs: the tensors that it was called with.
        output: what it put out, or what took its place.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    output: Any


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same numbers in memory, perhaps in another shape."""
    return one.numel() == other.numel() and one.data_ptr() == other.data_ptr()


def close(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape are equal up to rounding."""
    return one.shape == other.shape and bool((one - other).norm() <= TOLERANCE * other.norm())
