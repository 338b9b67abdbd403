"""The Gram of a layer's inputs: the (weighted) mean over tokens of x xᵀ, whatever batches the tokens came in."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems.checks import whole_number
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.ranks.ranks import Ranks

# Tokens per matrix product. Bounds the float32 rounding of one product; the products are summed in float64.
CHUNK_TOKENS = 1024
# Below it float32 squares lose digits or vanish next to the largest ones: they end at 1.2e-38, and Grams need 1e-8.
_FAINT = 1e-15
_ROUNDING = 1e-12  # of a sum of many float64 products


@contextmanager
def exact_matmul(device: torch.device) -> Iterator[None]:
    """Full float32 products inside the block: no TF32, no reduced internal precision, no autocast; then as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        known = torch.amp.is_autocast_available(device.type)
        with torch.autocast(device.type, enabled=False) if known else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class GramAccumulator:
    """Running Gram of all tokens seen so far.

    Float32 and 16-bit activations are multiplied in float32, in chunks of at most ``CHUNK_TOKENS`` tokens, and the
    chunks are summed in float64, so another split of the same tokens changes the result by rounding only (about 1e-7
    of the diagonal). Float64 activations are multiplied in float64. Keeps 8 bytes per entry, and one product of
    4 bytes per entry while it adds.

    Attributes:
        features: number of columns of the layer's weight.
        tokens: number of tokens counted so far; padding is not among them.
        weight: the sum of their weights; their number without a limit.
    """

    def __init__(
        self, features: int, device: torch.device | str = "cpu", *, limit: float = math.inf, parts: int = 1
    ) -> None:
        """Start from no tokens.

        Args:
            features: width of the inputs, at least 1.
            device: of the sum; activations are multiplied on their own device.
            limit: tokens with ‖x‖² above it get the weight limit / ‖x‖², all others 1; the mean is a weighted one.
            parts: in how many parts tokens are summed, for ``gram``; 8 bytes more per entry for each besides the first,
                which is what the others leave of the whole.

        Raises:
            RelaxPruneError: ``features`` is not a positive whole number.
        """
        whole_number("features", features, 1)
        self.features = features
        self.tokens = 0
        self.weight = 0.0
        self._limit = limit
        self._sum = torch.zeros(features, features, dtype=torch.float64, device=device)
        self._apart = [torch.zeros_like(self._sum) for _ in range(parts - 1)]
        self._apart_weights = [0.0] * (parts - 1)
        self._weights: list[tuple[float, int]] = []  # of every product, with its part
        self._dtype = torch.float32
        self._largest = 0.0

    def add(
        self,
        inputs: Tensor,
        *,
        kept: Tensor | None = None,
        layer: str = "inputs",
        batch: int = 0,
        part: int = 0,
        weights: Tensor | None = None,
    ) -> None:
        """Count the tokens of one batch, or of one part of it.

        Args:
            inputs: (..., features) activations of any float dtype; every leading index is one token.
            kept: (batch, tokens) bool, True for real tokens, False for padding; None when all count.
            layer: name for error messages.
            batch: index, for error messages.
            part: which part they belong to.
            weights: (tokens,) float64, of the tokens that count, besides what the limit makes of them; None for 1.

        Raises:
            RelaxPruneError: wrong width or dtype, a mask that does not fit, or values that are not finite.
        """
        where = f"the inputs of layer {layer!r} in batch {batch}"
        tokens = self.tokens_of(inputs, kept, where)
        if tokens.dtype == torch.float64:
            self._dtype = torch.float64
        with exact_matmul(tokens.device):
            for start in range(0, tokens.shape[0], CHUNK_TOKENS):
                chunk = tokens[start : start + CHUNK_TOKENS]  # (at most CHUNK_TOKENS, features)
                compute = self._compute_dtype(chunk)
                own = None if weights is None else weights[start : start + CHUNK_TOKENS]
                chunk, weight = self._weighted(chunk.to(compute), own)
                product = chunk.T @ chunk  # (features, features)
                if not bool(torch.isfinite(product.diagonal()).all()):
                    raise RelaxPruneError(
                        f"{where} overflow when squared in {compute}; their largest entry is "
                        f"{float(chunk.abs().max()):.3g}"
                    )
                self._count(product.to(self._sum.device), weight, part)
        self.tokens += tokens.shape[0]

    def tokens_of(self, inputs: Tensor, kept: Tensor | None, where: str) -> Tensor:
        """Return the real tokens of a batch, (tokens, features), once they are known to be usable."""
        if inputs.dim() == 0 or inputs.shape[-1] != self.features or not inputs.is_floating_point():
            raise RelaxPruneError(
                f"{where} must be a float tensor with {self.features} features in its last dimension, "
                f"got {inputs.dtype} of shape {tuple(inputs.shape)}"
            )
        tokens = real_tokens(inputs.detach(), kept, where)
        if not bool(torch.isfinite(tokens).all()):
            raise RelaxPruneError(f"{where} contain NaN or Inf; load the model in another dtype or drop that batch")
        return tokens

    def _compute_dtype(self, chunk: Tensor) -> torch.dtype:
        """Return what some tokens are multiplied in: float64 where their squares would vanish in float32."""
        largest = float(chunk.abs().max()) if chunk.numel() else 0.0
        self._largest = max(self._largest, largest)
        return torch.float64 if chunk.dtype == torch.float64 or 0 < largest < _FAINT else torch.float32

    def _weighted(self, chunk: Tensor, given: Tensor | None = None) -> tuple[Tensor, float]:
        """Return a chunk's rows (tokens, features), each times the root of its token's weight, and the weights' sum."""
        if self._limit == math.inf and given is None:
            return chunk, float(chunk.shape[0])
        weights = token_weights(squared_norms(chunk), self._limit)  # (tokens,) float64
        weights = weights if given is None else weights * given
        return chunk * weights.sqrt().to(chunk.dtype).unsqueeze(1), float(weights.sum())

    def _count(self, product: Tensor, weight: float, part: int) -> None:
        """Add the (features, features) sum of some tokens of a part, with their weights' sum."""
        self._sum += product
        if part:
            self._apart[part - 1] += product
        self._weigh(weight, part)

    def _weigh(self, weight: float, part: int) -> None:
        """Add the sum of the weights of some tokens of a part."""
        self._weights.append((weight, part))
        self.weight += weight
        if part:
            self._apart_weights[part - 1] += weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the Gram: float32 unless inputs are float64, or so small that all their moments vanish there."""
        faint = 0 < float(self._sum.diagonal().max()) < _FAINT**2 * self.weight
        return torch.float64 if faint else self._dtype

    def gram(self, parts: Collection[int] | None = None) -> Tensor:
        """Return the Gram so far.

        Args:
            parts: of these parts only, which must have weight; None for all tokens.

        Returns:
            (features, features), exactly symmetric; float64 when any input was or all inputs are too small for float32,
            otherwise float32, with zeros for features whose second moment is below its normal range (1.2e-38).

        Raises:
            RelaxPruneError: no token was counted, or inputs are not 0 and all their squares are.
        """
        if self.tokens == 0:
            raise RelaxPruneError("a Gram needs at least one token that is not padding, got none")
        if self._largest and not bool(self._sum.diagonal().any()):
            raise RelaxPruneError(f"inputs must have squares in float64, got none above {self._largest:.3g}")
        mean = self._sum / self.weight if parts is None else self.mean(parts)
        # A product of a matrix with its own transpose is symmetric only up to rounding: the two halves are averaged.
        mean.add_(mean.T.clone()).mul_(0.5)
        dead = self._dead(mean)
        if parts is not None:  # what the other parts leave of a whole is its rounding where they hold all of it
            dead |= mean.diagonal() * self.part_weight(parts) < _ROUNDING * self._sum.diagonal()
        mean[dead] = 0
        mean[:, dead] = 0
        return mean.to(self.dtype)

    def _dead(self, mean: Tensor) -> Tensor:
        """Return which features of a (features, features) mean are below float32's normal range, (features,) bool.

        Such a second moment would keep neither its value nor its correlations. None is of float64 inputs.
        """
        least = torch.finfo(torch.float32).tiny if self.dtype == torch.float32 else 0.0
        return mean.diagonal() < least

    def part_weight(self, parts: Collection[int]) -> float:
        """Return the sum of the weights of the tokens of some parts."""
        apart = sum(self._apart_weights[part - 1] for part in sorted(parts) if part)
        return apart + (self.weight - sum(self._apart_weights) if 0 in parts else 0.0)

    def mean(self, parts: Collection[int]) -> Tensor:
        """Return the (features, features) float64 mean of some parts, which must have weight, not yet symmetric."""
        total = torch.zeros_like(self._sum)
        if 0 in parts:
            total += self._sum
            for apart in (apart for part, apart in enumerate(self._apart, 1) if part not in parts):
                total -= apart
        else:
            for part in sorted(parts):
                total += self._apart[part - 1]
        return total.div_(self.part_weight(parts))

    def counts(self) -> dict[str, Any]:
        """Return everything but the sums, to tell other ranks."""
        return {
            "tokens": self.tokens,
            "weights": self._weights,
            "float64": self._dtype == torch.float64,
            "largest": self._largest,
        }

    def unite(self, told: Sequence[dict[str, Any]], ranks: Ranks) -> None:
        """Become the sum of what all ranks have counted.

        Partial sums are added in float64, in the order of the ranks. Products of float32 activations have 24 bits, so
        the sum of n of them is exact in float64, in whatever order they are added, unless one of them is below
        n / 2²⁹ of the largest: such a sum may differ in the 53rd bit from the one that a process alone adds up.

        Args:
            told: ``counts`` of each rank that has counted tokens, in the order of the ranks.
            ranks: all of them, each with an accumulator of the same width and parts, perhaps of no tokens.
        """
        self.tokens = sum(counts["tokens"] for counts in told)
        self.weight, self._weights = 0.0, []
        self._apart_weights = [0.0] * len(self._apart)
        for weight, part in (pair for counts in told for pair in counts["weights"]):
            self._weigh(weight, part)
        self._dtype = torch.float64 if any(counts["float64"] for counts in told) else torch.float32
        self._largest = max(counts["largest"] for counts in told)
        ranks.all_sum_(self._sum, *self._apart)

    def clone(self) -> GramAccumulator:
        """Return an independent copy."""
        twin = copy.copy(self)
        twin._sum = self._sum.clone()
        twin._apart, twin._apart_weights = [apart.clone() for apart in self._apart], list(self._apart_weights)
        twin._weights = list(self._weights)
        return twin


def squared_norms(tokens: Tensor) -> Tensor:
    """Return ‖x‖² of (tokens, features), in float64: (tokens,)."""
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=1, dtype=torch.float64)
    return norms.square()


def token_weights(norms: Tensor, limit: float) -> Tensor:
    """Return min(1, limit / ‖x‖²) for the (tokens,) squared norms; 1 for a token that is zero."""
    return (limit / norms).clamp(max=1.0)  # limit / 0 is infinite


def real_tokens(inputs: Tensor, kept: Tensor | None, where: str) -> Tensor:
    """Flatten activations to one row per real token.

    Args:
        inputs: (batch, tokens, ..., features), (batch * tokens, features), or (batch, features) for pooled inputs.
        kept: (batch, tokens) bool, False for padding; None when all count.
        where: the subject of the error message.

    Returns:
        (count, features), a view where possible.

    Raises:
        RelaxPruneError: padding is present and the inputs have no dimension that it can be matched with.
    """
    width = inputs.shape[-1]
    if kept is None:
        return inputs.reshape(-1, width)
    if inputs.dim() >= 3 and inputs.shape[:2] == kept.shape:
        return inputs[kept.to(inputs.device)].reshape(-1, width)
    if inputs.dim() == 2 and inputs.shape[0] == kept.numel():
        return inputs[kept.reshape(-1).to(inputs.device)]
    if inputs.dim() == 2 and inputs.shape[0] == kept.shape[0]:
        return inputs
    raise RelaxPruneError(
        f"{where} have shape {tuple(inputs.shape)}, which cannot be matched with an attention mask of shape "
        f"{tuple(kept.shape)}; give batches without padding, or exclude this layer"
    )
