"""Layers and inputs that are made up, to try a solver on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relaxprune.inputs.layer_grams import LayerGram
from relaxprune.models.layers import PrunableLayer
from relaxprune.options.objective_options import ObjectiveOptions
from relaxprune.problems import Gram

from .mask_solver import LayerInputs
from .objectives.terms import made_up

_RANK = 64


def made_up_gram(cols: int) -> Tensor:
    """Return a Gram for trials, (cols, cols)."""
    mix = torch.randn(cols, _RANK, generator=torch.Generator().manual_seed(cols))
    return mix @ mix.T / _RANK + torch.eye(cols)


def made_up_inputs(matrix: Tensor, layer: PrunableLayer, objective: ObjectiveOptions) -> LayerInputs:
    """Return the inputs of a layer with a (cols, cols) Gram, and what an objective has beside it."""
    gram = Gram(matrix)
    terms = made_up(objective, layer.matrix().to(matrix.device), gram)
    return LayerInputs(gram, LayerGram(matrix, 1, 1.0, 0.0), 1, layer.name, terms)


def made_up_layer(rows: int, cols: int, name: str = "trial") -> PrunableLayer:
    """Return a layer of normally distributed weights."""
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows))
    return PrunableLayer(name, nn.Module(), "Linear", nn.Parameter(weight, requires_grad=False))
