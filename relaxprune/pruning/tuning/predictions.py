"""The dense model's predictions on windows of text, kept small, and how far a pruned model is from them.

A model with an output head predicts tokens: the head's inputs are kept, and logits are made from them a few tokens at a
time. Where the head's outputs are not the model's logits, by a function of them that is not known here, the logits are
kept themselves. A model without a head is compared by what it puts out first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relaxprune.inputs.batches import Batch, run_model
from relaxprune.inputs.tree import flatten
from relaxprune.models.blocks import language_model
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.memory import free_bytes

from .distances import Readout, Readouts, relative_errors
from .gains import DIVERGENCE, ERROR
from .hearing import heard_inputs, input_of
from .held_out import Windows, counting

_CHECKED_TOKENS = 16  # whose logits are compared at a time
_TINY = torch.finfo(torch.float32).tiny


class DensePredictions:
    """What a model predicts while it is dense, window by window.

    Attributes:
        windows: the windows.
        measure: "divergence" or "error", as in ``Refinement``.

    Args:
        model: the dense model.
        windows: what to run it on.
        pruned: the parameters that will be pruned.
        blocks: name of the list of blocks, which the part of the model with the output head must hold.
    """

    def __init__(self, model: nn.Module, windows: Windows, pruned: Sequence[Tensor], blocks: str = "") -> None:
        self.windows = windows
        self._model = model
        self._part = language_model(model, blocks)
        self._head: nn.Module | None = None
        self._readouts: Readouts | None = None
        self._choose(pruned)
        self.measure = ERROR if self._readouts is None else DIVERGENCE
        self._aims: list[Tensor] = []
        for window in windows.batches:
            self._aims.append(self._aim(window))
            if len(self._aims) == 1:
                _check_room(self._aims[0], windows.batches)

    def distance(self, number: int) -> tuple[Tensor, int]:
        """Run the model as it is now on a window.

        Returns:
            The sum over its tokens of the distance from what the dense model predicted, and how many tokens they are.
        """
        states = self._states(self.windows.batches[number])
        aims = self._aims[number].to(states.device)
        if self._readouts is not None:
            return self._readouts.divergence(states, aims), len(states)
        exact = torch.promote_types(states.dtype, torch.float32)
        return relative_errors(states.to(exact), aims.to(exact)).sum(), len(states)

    def probe(self, number: int, seed: int) -> Tensor:
        """Run the model as it is now on a window, and return a number with a random gradient.

        The mean of g gᵀ over seeds, g the gradient, is the Gauss-Newton curvature of the window's distance: of a
        divergence where the dense model predicts what this one does, g is that of −log q(y), y drawn from the model's
        own predictions; of an error ‖y − ỹ‖² / ‖y‖², that of √2 εᵀỹ / ‖y‖ with random signs ε.

        Args:
            number: of the window.
            seed: of what is drawn.
        """
        states = self._states(self.windows.batches[number])
        draw = torch.Generator().manual_seed(seed)
        if self._readouts is not None:
            draws = torch.rand(len(states), 1, generator=draw, dtype=torch.float64)
            return self._readouts.surprise(states, draws.to(states.device))
        exact = torch.promote_types(states.dtype, torch.float32)
        signs = (2 * torch.randint(0, 2, states.shape, generator=draw) - 1).to(states.device, exact)
        sizes = self._aims[number].to(states.device, exact).square().sum(dim=1)
        return (signs * states.to(exact)).sum(dim=1).mul((2 / sizes.clamp(min=_TINY)).sqrt()).sum()

    def tokens(self, number: int) -> int:
        """Return how many tokens of a window count."""
        return len(self._aims[number])

    def _choose(self, pruned: Sequence[Tensor]) -> None:
        """Find out on the first window what to keep."""
        getter = getattr(self._part, "get_output_embeddings", None)
        head = getter() if callable(getter) else None
        if not isinstance(head, nn.Module):
            return
        with heard_inputs(head) as heard:
            leaves = flatten(run_model(self._model, self.windows.batches[0]))[0]
        scaled = _scaled(getattr(self._part, "config", None))
        if len(heard) == 1:
            logits = scaled(head(heard[0]))
            if any(_agree(leaf, logits) for leaf in leaves):
                self._head = head
                self._readouts = _readouts(head, scaled, logits.shape[-1], pruned)
                return
        width = getattr(head, "out_features", None)
        if width is not None and _first(leaves).shape[-1] == width:
            self._readouts = Readouts(_as_is, _as_is, int(width))

    def _aim(self, window: Batch) -> Tensor:
        """Return what the dense model makes of a window, on the CPU.

        Raises:
            RelaxPruneError: it is not finite.
        """
        states = self._states(window).cpu()
        if not bool(torch.isfinite(states).all()):
            raise RelaxPruneError("refine needs predictions of the dense model that are finite, got NaN or Inf")
        return states

    def _states(self, window: Batch) -> Tensor:
        """Return what is kept of a window, of the tokens that count, (tokens, features)."""
        if self._head is None:
            states = _first(flatten(run_model(self._model, window))[0])
        else:
            states = input_of(self._head, lambda: run_model(self._model, window))
        kept = counting(window, self.windows.decoder)
        if kept is not None and states.shape[:2] == kept.shape:
            return states[kept.to(states.device)]
        return states.reshape(-1, states.shape[-1])


def decoder_predicts(model: nn.Module, blocks: str = "") -> bool:
    """Return whether it is the decoder's tokens that a model predicts; ``blocks`` as for ``DensePredictions``."""
    return bool(getattr(getattr(language_model(model, blocks), "config", None), "is_encoder_decoder", False))


def _readouts(head: nn.Module, scaled: Readout, vocabulary: int, pruned: Sequence[Tensor]) -> Readouts:
    """Return what a head makes of states, now and later, when it may be pruned itself."""
    moved = {id(weight) for weight in pruned}
    weights = tuple(weight for weight in head.parameters() if id(weight) in moved)
    dense = copy.deepcopy(head) if weights else head
    return Readouts(lambda states: scaled(head(states)), lambda states: scaled(dense(states)), vocabulary, weights)


def _scaled(config: Any) -> Readout:
    """Return what a model of transformers makes of its head's outputs, by its configuration."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    divisor, factor = getattr(text, "logits_scaling", None) or 1.0, getattr(text, "logit_scale", None) or 1.0
    cap = getattr(text, "final_logit_softcapping", None)

    def scaled(logits: Tensor) -> Tensor:
        if divisor != 1.0:
            logits = logits / divisor
        if factor != 1.0:
            logits = logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return scaled


def _as_is(states: Tensor) -> Tensor:
    """Return logits that are kept themselves."""
    return states


def _agree(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of logits hold the same numbers, but for one unit in the last place of each.

    A model's logits are those of its head bit by bit, or after few operations of a number each. Anything larger, such
    as a factor of 0.99 in bfloat16, is something that the model does to them.
    """
    if one.shape != other.shape or not one.is_floating_point() or not one.numel():
        return False
    unit = max(torch.finfo(tensor.dtype).eps for tensor in (one, other))
    exact = torch.promote_types(torch.promote_types(one.dtype, other.dtype), torch.float32)
    largest = max(float(end.abs()) for end in other.aminmax())
    rows = (tensor.reshape(-1, tensor.shape[-1]).split(_CHECKED_TOKENS) for tensor in (one, other))
    for few, others in zip(*rows, strict=True):
        few, others = few.to(exact), others.to(exact)
        sizes = torch.maximum(few.abs(), others.abs()).clamp(min=unit * largest)
        if not bool(((few - others).abs() <= unit * sizes).all()):
            return False
    return True


def _check_room(first: Tensor, windows: Sequence[Batch]) -> None:
    """Raise RelaxPruneError if what is kept of all windows does not fit into memory, given that of the first one."""
    sizes = [sum(tensor.numel() for tensor in flatten((window.args, window.kwargs))[0]) for window in windows]
    needed, free = first.nbytes * sum(sizes) // max(1, sizes[0]), free_bytes()
    if free is not None and needed > free:
        raise RelaxPruneError(
            f"refine keeps {first.shape[-1]} numbers of the dense model for each token, {needed / 2**30:.3g} GiB for "
            f"{len(windows)} windows, got {free / 2**30:.3g} GiB of free memory: give fewer windows, such as "
            "--refine-samples 0"
        )


def _first(leaves: Sequence[Tensor]) -> Tensor:
    """Return the first matrix of numbers that a model puts out.

    Raises:
        RelaxPruneError: there is none.
    """
    for leaf in leaves:
        if leaf.is_floating_point() and leaf.dim() >= 2:
            return leaf
    raise RelaxPruneError("refine needs a model that puts out a tensor with features in its last dimension, got none")
