"""What the gradients at the outputs of one block's layers are summed to, by the kind of objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from relaxprune.inputs.gram_accumulator import CHUNK_TOKENS, GramAccumulator, exact_matmul
from relaxprune.inputs.layer_grams import LayerGram
from relaxprune.inputs.row_statistics import TokenWeights
from relaxprune.inputs.shrinkage import shrink
from relaxprune.models.layers import PrunableLayer
from relaxprune.options.objective_options import ObjectiveOptions
from relaxprune.problems import Gram

from .terms import PLAIN, LossTerms, row_groups


class Evidence(ABC):
    """Sums over the calibration text for the layers of one block.

    Args:
        options: what was asked for.
        signs: (windows,) float64, 1 or -1 for each window of the text.
    """

    def __init__(self, options: ObjectiveOptions, signs: Tensor) -> None:
        self.options, self.signs = options, signs

    @abstractmethod
    def add(self, layer: PrunableLayer, inputs: Tensor, slopes: Tensor, counts: Tensor, batch: tuple[int, int]) -> None:
        """Count one call of a layer in the dense model.

        Args:
            layer: the layer.
            inputs: (windows, tokens, cols), what it read, float32 or wider.
            slopes: (windows, tokens, rows), the loss's gradient at what it put out, in the same dtype.
            counts: (windows, tokens) bool, which tokens count.
            batch: its number, and that of its first window.
        """

    @property
    def weights(self) -> TokenWeights | None:
        """The weights of tokens for the Grams of groups of rows, None for a kind without them."""
        return None

    @abstractmethod
    def terms(self, layer: PrunableLayer, read: LayerGram, grouped: Mapping[str, list[GramAccumulator]]) -> LossTerms:
        """Return the terms of a layer, ``PLAIN`` where there is nothing to them.

        Args:
            layer: the layer, not pruned yet.
            read: its Gram, shrunk.
            grouped: layer -> the sums of its groups of rows, gathered with ``weights``.
        """


class RowWeights(Evidence):
    """Weights of tokens for groups of rows: the mean of y² over a group's outputs, to a power, capped, of mean 1."""

    def __init__(self, options: ObjectiveOptions, signs: Tensor) -> None:
        super().__init__(options, signs)
        self._squares: dict[str, dict[int, Tensor]] = {}  # (windows, tokens, groups) float64
        self._counts: dict[int, Tensor] = {}

    def add(self, layer: PrunableLayer, inputs: Tensor, slopes: Tensor, counts: Tensor, batch: tuple[int, int]) -> None:
        """Add the mean of y² over each group's outputs, token by token."""
        groups = row_groups(slopes.shape[2], self.options.count).to(slopes.device)
        sums = slopes.new_zeros(*slopes.shape[:2], int(groups[-1]) + 1, dtype=torch.float64)
        sums.index_add_(2, groups, slopes.to(torch.float64).square())
        found = sums / groups.bincount()
        known = self._squares.setdefault(layer.name, {})
        known[batch[0]] = known[batch[0]] + found if batch[0] in known else found
        self._counts[batch[0]] = counts

    @property
    def weights(self) -> TokenWeights:
        """The weights of all layers."""
        return {name: self._tamed(squares) for name, squares in self._squares.items()}

    def _tamed(self, squares: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the weights of one layer's tokens; all 1 for a group without any gradient."""
        powers = {batch: own.pow(self.options.share) for batch, own in squares.items()}
        every = torch.cat([own[self._counts[batch]] for batch, own in powers.items()])  # (tokens that count, groups)
        ordered = every.sort(dim=0).values
        cap = 1.0 if self.options.cap is None else self.options.cap
        place = min(len(ordered) - 1, int(cap * len(ordered))) if len(ordered) else 0
        most = ordered[place] if len(ordered) else every.new_zeros(every.shape[1])
        mean = every.minimum(most).mean(dim=0)
        live = mean > 0
        scale = torch.where(live, mean, 1.0)
        return {batch: torch.where(live, own.minimum(most) / scale, 1.0) for batch, own in powers.items()}

    def terms(self, layer: PrunableLayer, read: LayerGram, grouped: Mapping[str, list[GramAccumulator]]) -> LossTerms:
        """Return the groups' Grams, shrunk like the layer's own."""
        sums = grouped.get(layer.name, [])
        if not sums or any(one.weight <= 0 for one in sums):
            return PLAIN
        grams = tuple(Gram(shrink(one.gram(), read.shrinkage)) for one in sums)
        return LossTerms("rows", grams, {"row_groups": row_groups(layer.shape[0], len(grams))})


class WindowSlopes(Evidence):
    """Gradients of the loss in each row's weights, yᵀ X of single windows or of some with random signs."""

    def __init__(self, options: ObjectiveOptions, signs: Tensor) -> None:
        super().__init__(options, signs)
        self._rank = min(options.count, len(signs))
        self._lines: dict[str, Tensor] = {}  # (rank, rows, cols)

    def add(self, layer: PrunableLayer, inputs: Tensor, slopes: Tensor, counts: Tensor, batch: tuple[int, int]) -> None:
        """Add the gradient of each window to its line; tokens that do not count are part of the window's gradient."""
        lines = self._lines.setdefault(layer.name, inputs.new_zeros(self._rank, *layer.shape))
        with exact_matmul(inputs.device):
            for number, (read, slope) in enumerate(zip(inputs, slopes, strict=True), batch[1]):
                lines[number % self._rank].addmm_(slope.T, read, alpha=float(self.signs[number]))

    def terms(self, layer: PrunableLayer, read: LayerGram, grouped: Mapping[str, list[GramAccumulator]]) -> LossTerms:
        """Return F, scaled so that Σ w² diag(FᵀF) over the layer is the strength times Σ w² diag(G)."""
        lines = self._lines.pop(layer.name, None)
        if lines is None:
            return PLAIN
        squares = layer.matrix().to(lines.device).to(torch.float64).square()
        own = sum(float((squares * line.to(torch.float64).square()).sum()) for line in lines)
        shared = float((squares * read.gram.diagonal().to(squares)).sum())
        if not own > 0 or not shared > 0:
            return PLAIN
        fisher = (lines * (self.options.share * shared / own) ** 0.5).transpose(0, 1).contiguous()
        return LossTerms("fisher", parts={"fisher": fisher.to(read.gram.device)})


class OutputMoment(Evidence):
    """The second moment of the gradient at a layer's outputs."""

    def __init__(self, options: ObjectiveOptions, signs: Tensor) -> None:
        super().__init__(options, signs)
        self._sums: dict[str, Tensor] = {}  # (rows, rows) float64

    def add(self, layer: PrunableLayer, inputs: Tensor, slopes: Tensor, counts: Tensor, batch: tuple[int, int]) -> None:
        """Add y yᵀ of the tokens that count."""
        rows = layer.shape[0]
        total = self._sums.setdefault(layer.name, slopes.new_zeros(rows, rows, dtype=torch.float64))
        with exact_matmul(slopes.device):
            for chunk in slopes[counts].split(CHUNK_TOKENS):
                total += chunk.T @ chunk

    def terms(self, layer: PrunableLayer, read: LayerGram, grouped: Mapping[str, list[GramAccumulator]]) -> LossTerms:
        """Return the strength's share of the moment, of mean diagonal 1, and the identity for the rest."""
        total = self._sums.pop(layer.name, None)
        size = 0.0 if total is None else float(total.diagonal().mean())
        if total is None or not size > 0:
            return PLAIN
        moment = ((total + total.T) * (self.options.share / (2 * size))).to(read.gram.dtype)
        moment.diagonal().add_(1 - self.options.share)
        return LossTerms("coupled", parts={"outputs": Gram(moment.to(read.gram.device), "outputs")})


EVIDENCE: Mapping[str, type[Evidence]] = {"rows": RowWeights, "fisher": WindowSlopes, "coupled": OutputMoment}
"""By the kind of objective."""
