"""What is called instead of parts of a model without values: blocks like an earlier one, and experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.costs.counting import WorkCounter
from relaxprune.costs.work import NOTHING, Work
from relaxprune.models.layers import PrunableLayer
from relaxprune.support.forwards import replaced_forwards

_EXPERT_LAUNCHES = 12  # of one expert: its tokens are taken, multiplied twice, gated and added
_EXPERT_PASSES = 8  # over what its two matrices read and write


def products(flops: float, dtype: torch.dtype) -> Work:
    """Return the work of products in a dtype."""
    return Work(half_flops=flops) if dtype.itemsize == 2 else Work(flops=flops)


class BlockStandIns:
    """Measures the work of blocks; one that is built like an earlier block gives what that one gave.

    Attributes:
        firsts: index of a block that is not gone through -> the earlier one that it is like.
        work: of all blocks.
        counted: the part of it that the counter has counted.

    Args:
        blocks: in the order of their calls.
        counter: counts what is called.
        alike: whether blocks stand in for each other at all.
    """

    def __init__(self, blocks: Sequence[nn.Module], counter: WorkCounter, alike: bool) -> None:
        self.work = self.counted = NOTHING
        self.firsts: dict[int, int] = {}
        self._blocks, self._counter = blocks, counter
        self._begun: list[Work] = []
        self._found: dict[int, tuple[Any, Work]] = {}
        known: dict[object, int] = {}
        for index, block in enumerate(blocks):
            built = (type(block), *((name, parameter.shape) for name, parameter in block.named_parameters()))
            first = known.setdefault(built, index)
            if alike and first != index:
                self.firsts[index] = first

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Measure and stand in."""
        with ExitStack() as stack:
            for index, block in enumerate(self._blocks):
                if index not in self.firsts:
                    stack.callback(block.register_forward_pre_hook(self._enter).remove)
                    stack.callback(block.register_forward_hook(self._leave(index)).remove)
            away = {self._blocks[index]: self._repeat(first) for index, first in self.firsts.items()}
            stack.enter_context(replaced_forwards(away))
            yield

    def _enter(self, _module: nn.Module, _args: Any) -> None:
        """Note the work until a block begins."""
        self._begun.append(self._counter.work)

    def _leave(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        """Return the hook for the end of a block."""

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            done = self._counter.work + (-1.0) * self._begun.pop()
            self._found[index] = output, done
            self.work += done
            self.counted += done

        return leave

    def _repeat(self, first: int) -> Callable[..., Any]:
        """Return what is called instead of a block."""

        def forward(*_args: Any, **_kwargs: Any) -> Any:
            output, done = self._found[first]
            self.work += done
            return output

        return forward


class ExpertStandIns:
    """Stands in for modules of fused experts, whose work depends on which tokens are routed where.

    Args:
        layers: all experts of a model.
        counter: is told what they would do.
    """

    def __init__(self, layers: Sequence[PrunableLayer], counter: WorkCounter) -> None:
        self._modules: dict[nn.Module, list[PrunableLayer]] = {}
        for layer in layers:
            if layer.expert == 0:
                self._modules.setdefault(layer.module, []).append(layer)
        self._counter = counter
        self._routed: dict[object, int] = {}  # shape of a parameter -> tokens that all its experts get

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Have these modules return their first input, and count what they would do."""
        with replaced_forwards({module: self._counting(matrices) for module, matrices in self._modules.items()}):
            yield

    def tokens(self, layer: PrunableLayer, every: int) -> int:
        """Return how many tokens an expert reads: ``every`` one if its module was not called."""
        count = len(layer.weight)
        return -(-self._routed.get(layer.weight.shape, every * count) // count)

    def _counting(self, matrices: Sequence[PrunableLayer]) -> Callable[..., Tensor]:
        """Return what is called instead of a module: (tokens, width), the experts of each token, and their weights."""
        weight = matrices[0].weight
        width = sum(sum(layer.shape) for layer in matrices)
        entries = sum(layer.shape[0] * layer.shape[1] for layer in matrices)

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            indices = (value.numel() for value in tensors if not value.is_floating_point())
            routed = next(indices, tensors[0].numel() // tensors[0].shape[-1])
            self._routed |= {layer.weight.shape: routed for layer in matrices}
            passes = _EXPERT_PASSES * weight.element_size() * routed * width
            called = Work(bytes=passes, launches=_EXPERT_LAUNCHES * min(len(weight), routed))
            self._counter.add(products(2.0 * routed * entries, weight.dtype) + called)
            return torch.zeros_like(tensors[0])

        return forward
