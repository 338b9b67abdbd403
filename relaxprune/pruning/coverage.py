"""How much of a model a run has pruned: of the weights of its matrices, and of all its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import nn

from relaxprune.models.blocks import output_heads
from relaxprune.models.layers import PrunableLayer

_LEAST = 0.5  # of the weights of the matrices: below it the user must see how little was pruned


@dataclass(frozen=True, kw_only=True)
class MatrixCount:
    """What there is to prune in a model.

    Attributes:
        matrices: matrices, each of fused experts by itself. Embeddings and the output head are none, unless the run
            prunes them: nobody expects these to be pruned, and in small models they are a large part.
        weights: entries of the matrices.
        unasked: those of matrices that the user's patterns leave alone.
        parameters: entries of all parameters, tied ones once.
    """

    matrices: int
    weights: int
    unasked: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a model was pruned.

    Attributes:
        layers: matrices that were pruned.
        layer_weights: their entries.
        pruned_weights: the entries that their masks prune.
        of: what there was to prune.
    """

    layers: int
    layer_weights: int
    pruned_weights: int
    of: MatrixCount

    @property
    def covered(self) -> float:
        """Share of the matrices' entries that lie in pruned layers."""
        return self.layer_weights / max(self.of.weights, 1)

    @property
    def pruned(self) -> float:
        """Share of the matrices' entries that were pruned."""
        return self.pruned_weights / max(self.of.weights, 1)

    @property
    def pruned_of_parameters(self) -> float:
        """Share of all parameters that were pruned."""
        return self.pruned_weights / max(self.of.parameters, 1)

    @property
    def is_low(self) -> bool:
        """Whether less than half of what the user has not left alone lies in pruned layers."""
        return self.layer_weights < _LEAST * (self.of.weights - self.of.unasked)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and the shares."""
        counts = {key: value for key, value in asdict(self).items() if key != "of"}
        shares = {name: getattr(self, name) for name in ("covered", "pruned", "pruned_of_parameters")}
        return {**counts, **asdict(self.of), **shares}

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"pruned: {self.pruned:.1%} of the weights of the model's matrices ({self.layers} of {self.of.matrices} "
            f"matrices; embeddings and output head apart), {self.pruned_of_parameters:.1%} of all parameters"
        )


def count_matrices(
    model: nn.Module, chosen: Iterable[PrunableLayer], unasked: Sequence[PrunableLayer] = ()
) -> MatrixCount:
    """Count what there is to prune in a model.

    Args:
        model: any module.
        chosen: the layers that a run prunes, which count in any case.
        unasked: those that the user's patterns leave alone.
    """
    tables = [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    apart = {id(weight) for module in (*tables, *output_heads(model)) for weight in module.parameters()}
    apart -= {id(layer.weight) for layer in chosen}
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2 and id(weight) not in apart]
    fused = {id(layer.weight) for layer in (*chosen, *unasked) if layer.expert is not None}
    return MatrixCount(
        matrices=sum(len(weight) if id(weight) in fused else 1 for weight in matrices),
        weights=sum(weight.numel() for weight in matrices),
        unasked=sum(prod(layer.shape) for layer in unasked if id(layer.weight) not in apart),
        parameters=sum(weight.numel() for weight in model.parameters()),
    )
