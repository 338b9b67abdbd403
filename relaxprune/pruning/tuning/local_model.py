"""What a small change of a layer does to a pruned model as a whole: a gradient, and a curvature of the layer's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune.inputs.batches import run_model
from relaxprune.inputs.checkpointing import checkpointed
from relaxprune.inputs.shrinkage import shrink
from relaxprune.inputs.statistics import StatisticsCollector
from relaxprune.inputs.streams import Streams
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems import Gram, MaskProblem, Objective
from relaxprune.problems.polytopes import Polytope

from .kept_weights import tracked
from .whole_model import WholeModel

_LEAST = 1e-3  # of the mean over rows: no row's curvature counts as less


@dataclass(frozen=True, eq=False)
class LocalModel:
    """The mean distance of a token as a function of one layer's weights V near V0, those that it has.

    ⟨slope, V − V0⟩ + ½ ρ Σ_i sizes_i (v_i − v0_i) G (v_i − v0_i)ᵀ, v_i row i. The larger ρ is, the less the model is
    trusted away from V0. sizes_i · tr G is the trace of the Gauss-Newton curvature in row i, which gives the Gram the
    size that the distance has: with ρ = 1 this is the Kronecker-factored curvature (K-FAC, Martens and Grosse, ICML
    2015) with a diagonal factor for the outputs.

    Attributes:
        slope: (rows, cols), the gradient, at pruned weights too.
        sizes: (rows,) float64, above 0.
        gram: (cols, cols), of the layer's inputs in the pruned model.
    """

    slope: Tensor
    sizes: Tensor
    gram: Gram

    def problem(self, current: Tensor, values: Tensor, trust: float, polytope: Polytope) -> MaskProblem:
        """Return the problem of the mask M that is best for V = M ∘ values, over a set of masks.

        Rows are scaled by the roots of their sizes, so that one Gram serves all. Its objective, times ``unit(trust)``
        and up to a constant, is the model's value.

        Args:
            current: (rows, cols), V0.
            values: (rows, cols), what a weight is where it is kept.
            trust: ρ.
            polytope: the set.
        """
        dtype = self.gram.matrix.dtype
        root = (self.sizes / self.sizes.mean()).sqrt().unsqueeze(1)
        weight, origin = ((root * matrix.to(torch.float64)).to(dtype) for matrix in (values, current))
        distance = Objective.towards(origin, weight, self.gram)
        assert distance.linear is not None
        linear = distance.linear + self.slope.to(torch.float64) / (root * self.unit(trust))
        return MaskProblem(weight, Objective(self.gram, linear=linear), polytope)

    def unit(self, trust: float) -> float:
        """Return what one of the problem's objective is worth of the distance."""
        return 0.5 * trust * float(self.sizes.mean())

    def change(self, current: Tensor, new: Tensor, trust: float = 1.0) -> float:
        """Return how the model says the mean distance of a token changes from V0 to new weights (rows, cols)."""
        step = new.to(torch.float64) - current.to(torch.float64)
        bent = (step * (step @ self.gram.matrix.to(torch.float64))).sum(dim=1)
        return float((self.slope.to(torch.float64) * step).sum() + 0.5 * trust * (self.sizes * bent).sum())


def local_models(
    whole: WholeModel, layers: Sequence[PrunableLayer], streams: Streams, share: float, seed: int
) -> dict[str, LocalModel]:
    """Return the models of layers that text reached, by parameter name.

    Args:
        whole: the pruned model, and its windows; those that are not held out are read.
        layers: its pruned layers.
        streams: which tokens, and so which padding, each of them reads.
        share: λ, how far Grams are shrunk to their diagonals.
        seed: of what is drawn to see the curvature.
    """
    slopes, energies = _slopes(whole, layers, seed)
    sums, found = _read(whole, layers, streams), {}
    while sums.groups:
        members, own = sums.take()
        if own is None:
            continue
        gram = Gram(shrink(own.gram(), share))
        trace = float(gram.diagonal.to(torch.float64).sum())
        for layer in members:
            energy = energies.get(layer.parameter)
            if energy is None or not trace or not bool(energy.any()):
                continue
            sizes = energy.clamp(min=_LEAST * float(energy.mean())) / trace
            slope = _matrix(layer, slopes[id(layer.weight)])
            found[layer.parameter] = LocalModel(slope, sizes, gram)
    return found


def _slopes(
    whole: WholeModel, layers: Sequence[PrunableLayer], seed: int
) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
    """Return the gradient of the mean distance of a token, by id of the parameter, and each row's curvature.

    A row's curvature is the trace of its Gauss-Newton matrix, (rows,) float64, by parameter name.
    """
    parameters = list({id(layer.weight): layer.weight for layer in layers}.values())
    slopes: dict[int, Tensor] = {}
    energies: dict[str, Tensor] = {}
    tokens = sum(whole.predictions.tokens(number) for number in whole.tuned)
    with tracked(parameters, whole.model.parameters()), checkpointed(whole.model, whole.blocks), torch.enable_grad():
        for number in whole.tuned:
            for name, slope in _gradients(whole.predictions.distance(number)[0], parameters):
                total = slopes.get(name)
                slopes[name] = slope.to(_exact(slope), copy=True) if total is None else total.add_(slope)
            probes = dict(_gradients(whole.predictions.probe(number, seed + number), parameters))
            for layer in layers:
                if id(layer.weight) in probes:
                    own = _matrix(layer, probes[id(layer.weight)]).to(torch.float64).square().sum(dim=1)
                    energies[layer.parameter] = energies.get(layer.parameter, 0.0) + own
    return (
        {name: total / tokens for name, total in slopes.items()},
        {name: energy / tokens for name, energy in energies.items()},
    )


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield the gradient of a loss for each parameter that it depends on, by id."""
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    yield from ((id(one), slope) for one, slope in zip(parameters, found, strict=True) if slope is not None)


def _exact(slope: Tensor) -> torch.dtype:
    """Return the dtype that gradients are summed in."""
    return torch.promote_types(slope.dtype, torch.float32)


def _matrix(layer: PrunableLayer, stored: Tensor) -> Tensor:
    """Return what belongs to a layer of a tensor in the shape of its parameter: (rows, cols)."""
    return layer.as_matrix(stored if layer.expert is None else stored[layer.expert])


def _read(whole: WholeModel, layers: Sequence[PrunableLayer], streams: Streams) -> StatisticsCollector:
    """Return the sums of what layers read of the windows that are not held out."""
    sums = StatisticsCollector(layers, streams=streams)
    for number in whole.tuned:
        window = whole.predictions.windows.batches[number]
        with sums.listening(number, window.kept, window.decoder_kept):
            run_model(whole.model, window)
    return sums
