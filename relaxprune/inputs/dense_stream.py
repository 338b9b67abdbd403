"""The dense model next to the one being pruned: its layers' inputs, without a second model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from .propagation import Pass, Propagation, Rerun
from .stages import Stage


class DenseStream:
    """Puts batches through the dense model, stage by stage, while the model's weights are being pruned.

    The dense weights of a stage are set aside and put back for each pass: those of the current block if blocks are
    replayed, those of all layers pruned so far if the whole model is run.

    Args:
        propagation: of the dense model, apart from that of the pruned one.
        follows: advance it from block to block. False if it is the pruned model's own, so that only the current block
            is dense.
    """

    def __init__(self, propagation: Propagation, *, follows: bool = True) -> None:
        self.propagation = propagation
        self._follows = follows
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self, stage: Stage) -> None:
        """Keep the dense weights of a stage before anything is written to them."""
        weights = {id(layer.weight): layer.weight for layer in stage.layers}  # experts share one
        self._kept += [(weight, weight.detach().clone()) for weight in weights.values()]

    def passes(self, stage: Stage, batches: int | None = None) -> Iterator[Pass]:
        """Yield the passes of the dense model."""
        for one in self.propagation.passes(stage, batches):
            yield Pass(one.number, one.batch, partial(self._run, one))

    def advance(self, stage: Stage) -> None:
        """Make the inputs of the next stage from the dense weights of this one, and forget what is not needed again."""
        if self._follows:
            with self.dense():
                self.propagation.advance(stage)
        if not isinstance(self.propagation, Rerun):
            self._kept.clear()

    def _run(self, one: Pass) -> list[Tensor]:
        """Run one pass on the dense weights."""
        with self.dense():
            return one.run()

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Put the dense weights into the model; the pruned ones come back at the end, even after an exception."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Exchange the weights in the model with those that are kept; no number is copied."""
        for place, (parameter, weight) in enumerate(self._kept):
            self._kept[place] = (parameter, parameter.data)
            parameter.data = weight
