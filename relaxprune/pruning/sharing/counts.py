"""From a pass over the dense model to how many entries every layer loses: one multiplier for all, or OWL's rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from relaxprune.models.layers import PrunableLayer
from relaxprune.options.allocation import Allocation, ErrorCurve, equal_marginal_counts, rounded_counts
from relaxprune.problems import Gram, KSparse, MaskProblem
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes.ksparse import pruned_count
from relaxprune.problems.problem import relative_error
from relaxprune.problems.saliency import saliency
from relaxprune.ranks.ranks import ALONE, Ranks
from relaxprune.ranks.sharing import Loads, layer_cost
from relaxprune.solvers.frank_wolfe.fw import FrankWolfe
from relaxprune.solving.solving import solve

from .dense_grams import DenseModel, Shown
from .sensitivity import sensitivities

LEVELS = (0.25, 0.45, 0.6, 0.75, 0.9)
ROWS = 64  # of a layer, evenly spread, on which its error curve is measured
ITERATIONS = 12


def decide(allocation: Allocation, sparsity: float, dense: DenseModel, seed: int = 0) -> dict[str, int]:
    """Decide how many entries of every row each layer loses, by a pass over the dense model.

    Args:
        allocation: of kind "owl" or "model".
        sparsity: of the whole model.
        dense: the model, with its layers and calibration batches.
        seed: of the sensitivities.

    Returns:
        As ``allocate``.
    """
    blocks = {layer.name: dense.blocks.index_of(layer) for layer in dense.layers}
    ranks, weights = dense.portion.ranks, {}
    if allocation.kind == "model":
        weights = ranks.from_leader(lambda: sensitivities(dense.model, dense.blocks, dense.layers, dense.batches, seed))
    return allocate(allocation, sparsity, dense.grams(), blocks, weights, ranks)


def allocate(
    allocation: Allocation,
    sparsity: float,
    shown: Iterable[Shown],
    blocks: Mapping[str, int | None],
    sensitivity: Mapping[str, float],
    ranks: Ranks = ALONE,
) -> dict[str, int]:
    """Decide how many entries of every row each layer loses.

    Args:
        allocation: of kind "owl" or "model".
        sparsity: of the whole model.
        shown: the layers with their Grams, as ``DenseModel.grams`` shows them; read once.
        blocks: layer name -> index of its block, None outside of the blocks.
        sensitivity: for "model", layer name -> the weight of its error, from ``sensitivities``.
        ranks: are shown the same, and measure some of the layers each.

    Returns:
        layer name -> entries pruned of every row, for every layer that was shown (for "model": and has a
        sensitivity). Together they lose at most
        floor(sparsity · weights), and no layer could lose one more entry of every row within that and its cap.
    """
    if allocation.kind == "owl":
        return _owl_counts(allocation, sparsity, shown, blocks)
    curves = _curves(shown, sensitivity, ranks)
    total = pruned_count(sum(curve.rows * curve.cols for curve in curves.values()), sparsity)
    return equal_marginal_counts(curves, total, allocation.cap(sparsity))


def _curves(shown: Iterable[Shown], sensitivity: Mapping[str, float], ranks: Ranks) -> dict[str, ErrorCurve]:
    """Return the error curve of every layer that has a sensitivity, each measured on one rank."""
    loads, names, own = Loads([0.0] * ranks.world), [], {}
    for layers, gram in shown:
        for layer in (layer for layer in layers if layer.name in sensitivity):
            names.append(layer.name)
            if loads.give(layer_cost(layer.shape)) == ranks.rank:
                own[layer.name] = asdict(error_curve(layer, gram, sensitivity[layer.name]))
    told = {name: facts for rank in ranks.exchange(own) for name, facts in rank.items()}
    return {name: ErrorCurve(**told[name]) for name in names}


def error_curve(layer: PrunableLayer, gram: Gram, sensitivity: float) -> ErrorCurve:
    """Measure a layer's error at a few sparsities, by masks that a few iterations of Frank-Wolfe find for some rows.

    The curve is scaled by f(0) of the whole layer and by its sensitivity.

    Raises:
        RelaxPruneError: the masks cannot be found; the message names the layer.
    """
    rows, cols = layer.shape
    matrix = gram.matrix
    picked = torch.arange(0, rows, -(-rows // ROWS), device=matrix.device)
    whole = layer.matrix().to(device=matrix.device, dtype=matrix.dtype)
    weight = whole[picked]  # (at most ROWS, cols)
    counts = sorted({pruned_count(cols, level) for level in LEVELS} - {0})
    errors = []
    try:
        for count in counts:
            problem = MaskProblem(weight, gram, KSparse(cols - count))
            quick = solve(problem, FrankWolfe(effort="fast"), max_iterations=ITERATIONS, polish=None, throw=False)
            errors.append(relative_error(quick.objective, problem.dense_energy))
        energy = MaskProblem(whole, gram, KSparse(cols)).dense_energy
    except RelaxPruneError as error:
        raise RelaxPruneError(f"layer {layer.name!r}: {error}") from error
    return ErrorCurve(rows, cols, energy * sensitivity, [count / cols for count in counts], errors)


@dataclass
class _Unit:
    """Layers that OWL prunes alike: a block's, or one outside of the blocks; with the diagonals of their Grams."""

    layers: list[PrunableLayer] = field(default_factory=list)
    diagonals: list[Tensor] = field(default_factory=list)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(layer.stored.numel() for layer in self.layers)

    def outlier_ratio(self, factor: float) -> float:
        """Return the share of the weights whose Wanda score exceeds ``factor`` times the mean score."""
        pairs = list(zip(self.layers, self.diagonals, strict=True))
        mean = sum(float(_scores(*pair).sum()) for pair in pairs) / self.weights
        return sum(int((_scores(*pair) > factor * mean).sum()) for pair in pairs) / self.weights


def _scores(layer: PrunableLayer, diagonal: Tensor) -> Tensor:
    """Return |W_ij| sqrt(G_jj), (rows, cols) float64."""
    return saliency("wanda", layer.matrix().to(diagonal.device), diagonal)


def _owl_counts(
    allocation: Allocation, sparsity: float, shown: Iterable[Shown], blocks: Mapping[str, int | None]
) -> dict[str, int]:
    """Share the sparsity by outlier ratios (OWL, arXiv 2310.05175, section 3.2, and the authors' code).

    With the ratios D of the blocks put linearly on [0, 2 λ], a block's density is that value, moved so that the mean
    density is the one asked for. The mean is over weights; the blocks that the paper means all have the same number.
    """
    factor, spread = allocation.owl
    units: dict[int | str, _Unit] = {}
    for layers, gram in shown:
        for layer in layers:
            block = blocks[layer.name]
            unit = units.setdefault(layer.name if block is None else block, _Unit())
            unit.layers.append(layer)
            unit.diagonals.append(gram.diagonal.clone())
    ratios = {key: unit.outlier_ratio(factor) for key, unit in units.items()}
    least, most = min(ratios.values(), default=0.0), max(ratios.values(), default=0.0)
    width = 2 * spread / (most - least) if most > least else 0.0
    raised = {key: width * (ratio - least) for key, ratio in ratios.items()}
    weights = sum(unit.weights for unit in units.values())
    mean = sum(raised[key] * unit.weights for key, unit in units.items()) / max(weights, 1)
    shares = {layer.name: sparsity - raised[key] + mean for key, unit in units.items() for layer in unit.layers}
    shapes = {layer.name: layer.shape for unit in units.values() for layer in unit.layers}
    return rounded_counts(shares, shapes, pruned_count(weights, sparsity))
