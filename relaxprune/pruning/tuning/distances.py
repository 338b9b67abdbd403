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
Part = Callable[[Tensor, Tensor], Tensor]
"""From the states of a few tokens, and what else is known of them, to the sum of their losses."""


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
        return self._summed(self._divergence, states, aims)

    def surprise(self, states: Tensor, draws: Tensor) -> Tensor:
        """Return the sum over tokens of −log q(y), y drawn from the model's own prediction q, gradients as above.

        The second moment of the gradient is the curvature of the divergence where the dense model predicts the same:
        that of the logits, Diag(q) − q qᵀ, is the mean of (q − e_y)(q − e_y)ᵀ over y.

        Args:
            states: (tokens, features) of the model.
            draws: (tokens, 1) numbers from 0 to 1, which say where in q's distribution y lies.
        """
        return self._summed(self._surprise, states, draws)

    def slopes(self, part: Part, states: Tensor, others: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return a sum over tokens, and its gradients with respect to the states and each of the weights."""
        total = torch.zeros((), device=states.device, dtype=torch.promote_types(states.dtype, torch.float32))
        slopes = [torch.zeros_like(states), *(torch.zeros_like(weight) for weight in self.weights)]
        for few in self._parts(len(states)):
            with torch.enable_grad():
                leaf = states[few].detach().requires_grad_()
                loss = part(leaf, others[few])
                found = torch.autograd.grad(loss, [leaf, *self.weights])
            total += loss.detach()
            slopes[0][few] = found[0]
            for slope, more in zip(slopes[1:], found[1:], strict=True):
                slope += more
        return total, slopes

    def _summed(self, part: Part, states: Tensor, others: Tensor) -> Tensor:
        """Return the sum of a part of the tokens' losses over all of them."""
        if torch.is_grad_enabled():
            apply: Callable[..., Tensor] = _Summed.apply
            return apply(self, part, others, states, *self.weights)
        sums = [part(states[few], others[few]) for few in self._parts(len(states))]
        return torch.stack(sums).sum() if sums else states.new_zeros(())

    def _divergence(self, states: Tensor, aims: Tensor) -> Tensor:
        """Return the divergence summed over a few tokens."""
        with torch.no_grad():
            aimed = self.dense(aims)
            wanted = aimed.to(torch.promote_types(aimed.dtype, torch.float32)).log_softmax(-1)
        return torch.nn.functional.kl_div(self._own(states), wanted, reduction="sum", log_target=True)

    def _surprise(self, states: Tensor, draws: Tensor) -> Tensor:
        """Return the surprise summed over a few tokens."""
        own = self._own(states)
        with torch.no_grad():
            reached = own.exp().cumsum(-1)
            drawn = torch.searchsorted(reached, draws.to(reached.dtype) * reached[:, -1:])
        return -own.gather(1, drawn.clamp(max=own.shape[1] - 1)).sum()

    def _own(self, states: Tensor) -> Tensor:
        """Return the log probabilities that the model gives, (tokens, vocabulary)."""
        logits = self.model(states)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def _parts(self, tokens: int) -> Iterator[slice]:
        """Yield slices of as many tokens as have their logits held at once."""
        size = max(1, _CHUNK_ENTRIES // self.vocabulary)
        return (slice(start, start + size) for start in range(0, tokens, size))


class _Summed(torch.autograd.Function):
    """``Readouts.slopes`` for autograd."""

    @staticmethod
    def forward(ctx: Any, readouts: Readouts, part: Part, others: Tensor, states: Tensor, *weights: Tensor) -> Tensor:
        """Compute the sum and its gradients."""
        total, ctx.slopes = readouts.slopes(part, states, others)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients."""
        found: Sequence[Tensor] = ctx.slopes
        return (None, None, None, *(slopes[0].to(slope.dtype) * slope for slope in found))
