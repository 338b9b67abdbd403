"""How far outputs and predictions are from the dense model's, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK_ENTRIES = 2**24  # of a (tokens, vocabulary) matrix that is held at once: 64 MiB in float32

Readout = Callable[[Tensor], Tensor]
"""From states (tokens, features) to logits (tokens, vocabulary)."""


def relative_errors(output: Tensor, wanted: Tensor) -> Tensor:
    """Return ‖y − ỹ‖² / ‖y‖² of every token, (tokens,), for y ``wanted`` and ỹ ``output``, (tokens, features) each."""
    sizes = wanted.square().sum(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return (output - wanted).square().sum(dim=1) / sizes


@dataclass(frozen=True, eq=False)
class Readouts:
    """What turns states into logits, in the model as it is and in the dense one.

    Attributes:
        model: of the model.
        dense: of the dense model; the same unless the output head is pruned itself.
        vocabulary: how many logits a token has.
        weights: parameters of ``model`` that may move.
    """

    model: Readout
    dense: Readout
    vocabulary: int
    weights: tuple[Tensor, ...] = ()

    def divergence(self, states: Tensor, aims: Tensor) -> Tensor:
        """Return the sum over tokens of KL(dense ‖ model) in nats, with gradients for the states and the weights.

        Args:
            states: (tokens, features) of the model.
            aims: the same of the dense model.

        The logits of few tokens are held at a time: their gradients are taken at once, not when the sum's are.
        """
        if torch.is_grad_enabled():
            apply: Callable[..., Tensor] = _Divergence.apply
            return apply(self, aims, states, *self.weights)
        sums = [self._part(states[part], aims[part]) for part in self._parts(len(states))]
        return torch.stack(sums).sum() if sums else states.new_zeros(())

    def slopes(self, states: Tensor, aims: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the divergence, and its gradients with respect to the states and each of the weights."""
        total = torch.zeros((), device=states.device, dtype=torch.promote_types(states.dtype, torch.float32))
        slopes = [torch.zeros_like(states), *(torch.zeros_like(weight) for weight in self.weights)]
        for part in self._parts(len(states)):
            with torch.enable_grad():
                leaf = states[part].detach().requires_grad_()
                loss = self._part(leaf, aims[part])
                found = torch.autograd.grad(loss, [leaf, *self.weights])
            total += loss.detach()
            slopes[0][part] = found[0]
            for slope, more in zip(slopes[1:], found[1:], strict=True):
                slope += more
        return total, slopes

    def _part(self, states: Tensor, aims: Tensor) -> Tensor:
        """Return the divergence summed over a few tokens."""
        logits = self.model(states)
        exact = torch.promote_types(logits.dtype, torch.float32)
        with torch.no_grad():
            wanted = self.dense(aims).to(exact).log_softmax(-1)
        own = logits.to(exact).log_softmax(-1)
        return torch.nn.functional.kl_div(own, wanted, reduction="sum", log_target=True)

    def _parts(self, tokens: int) -> Iterator[slice]:
        """Yield slices of as many tokens as have their logits held at once."""
        size = max(1, _CHUNK_ENTRIES // self.vocabulary)
        return (slice(start, start + size) for start in range(0, tokens, size))


class _Divergence(torch.autograd.Function):
    """``Readouts.divergence`` for autograd."""

    @staticmethod
    def forward(ctx: Any, readouts: Readouts, aims: Tensor, states: Tensor, *weights: Tensor) -> Tensor:
        """Compute the sum and its gradients."""
        total, ctx.slopes = readouts.slopes(states, aims)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients."""
        found: Sequence[Tensor] = ctx.slopes
        return (None, None, *(slopes[0].to(slope.dtype) * slope for slope in found))
