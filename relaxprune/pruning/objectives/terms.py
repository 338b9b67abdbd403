"""What a layer's objective has beside its Gram, and what that is worth in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relaxprune.options.objective_options import GRAM, ObjectiveOptions
from relaxprune.problems import Gram, Objective


@dataclass(frozen=True, eq=False)
class LossTerms:
    """Parts of an ``Objective``, made for one layer.

    Attributes:
        kind: of ``ObjectiveOptions``.
        grams: of groups of rows, in the place of the layer's own; empty for that.
        parts: the other parts, as ``Objective`` takes them by name.
    """

    kind: str = GRAM
    grams: tuple[Gram, ...] = ()
    parts: Mapping[str, Any] | None = None

    def objective(self, gram: Gram, damping: float = 0.0) -> Objective:
        """Return the objective of a layer with this Gram, or with Grams that are damped by a share of their scale."""
        grams = [one.damped(damping) for one in self.grams or (gram,)]
        return Objective(grams if self.grams else grams[0], **(self.parts or {}))


PLAIN = LossTerms()
"""The Gram alone."""


def row_groups(rows: int, count: int) -> Tensor:
    """Return the group of each row, (rows,): ``count`` runs of rows, or one for each row, as even as can be."""
    count = min(rows, count)
    return torch.arange(rows) * count // rows


def made_up(options: ObjectiveOptions, weight: Tensor, gram: Gram) -> LossTerms:
    """Return terms of a kind for a layer that was never run, to try a solver on: of the right shapes, and no more.

    Args:
        options: what was asked for.
        weight: (rows, cols).
        gram: (cols, cols).
    """
    return _MADE_UP[options.kind](options, weight, gram) if options.active else PLAIN


def _made_up_rows(options: ObjectiveOptions, weight: Tensor, gram: Gram) -> LossTerms:
    """Return the same Gram for each group."""
    groups = row_groups(len(weight), options.count)
    return LossTerms("rows", (gram,) * (int(groups[-1]) + 1), {"row_groups": groups})


def _made_up_fisher(options: ObjectiveOptions, weight: Tensor, _gram: Gram) -> LossTerms:
    """Return lines of random numbers."""
    draw = torch.Generator().manual_seed(options.count)
    fisher = torch.randn(len(weight), options.count, weight.shape[1], generator=draw)
    return LossTerms("fisher", parts={"fisher": fisher.to(weight.device) / options.count})


def _made_up_coupled(options: ObjectiveOptions, weight: Tensor, _gram: Gram) -> LossTerms:
    """Return a moment of few directions beside the identity."""
    mix = torch.randn(len(weight), 4, generator=torch.Generator().manual_seed(4))
    moment = options.share * mix @ mix.T / 4 + (1 - options.share) * torch.eye(len(weight))
    return LossTerms("coupled", parts={"outputs": moment.to(weight.device)})


_MADE_UP = {"rows": _made_up_rows, "fisher": _made_up_fisher, "coupled": _made_up_coupled}
