"""An explicit active set: convex combinations of stored vertices, one per coupled block, in one batch."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_SLOTS = 32
_GROWTH = 2
_CHUNK = 2**22  # entries of vertices turned to floats at once


class ActiveSet:
    """Convex combinations of vertices, one per coupled block: Σ weight · vertex, weights > 0 exactly where active.

    Attributes:
        vertices: (slots, blocks, entries) bool; slots without weight hold leftovers.
        weights: (slots, blocks).
        keys: (slots, blocks) int64, a hash of each vertex.
        limit: the most bytes that the vertices may take; the first ``FIRST_SLOTS`` a block are allowed regardless.
    """

    def __init__(self, vertex: Tensor, limit: int) -> None:
        """Begin with one ``vertex`` (blocks, entries) of 0 and 1 in every block."""
        self.limit = limit
        blocks, entries = vertex.shape
        generator = torch.Generator().manual_seed(0)
        salt = torch.randint(-(2**62), 2**62, (entries,), generator=generator)
        self._salt = salt.to(vertex.device)  # wrapping sums of it are exact and order-free
        self.vertices = torch.empty(0, blocks, entries, dtype=torch.bool, device=vertex.device)
        self.weights = vertex.new_zeros(0, blocks)
        self.keys = torch.empty(0, blocks, dtype=torch.long, device=vertex.device)
        self._grow(FIRST_SLOTS)
        self.vertices[0], self.weights[0], self.keys[0] = vertex > 0, 1.0, self._key(vertex)
        self._used = 1  # no slot from here on is active; never below the truth, lowered by ``trim``

    def sizes(self) -> Tensor:
        """Return the number of active vertices of each block: (blocks,) int64."""
        return (self.weights > 0).sum(dim=0)

    def select(self, index: Tensor) -> None:
        """Keep the blocks in ``index``."""
        self.vertices, self.weights, self.keys = (
            values[:, index] for values in (self.vertices, self.weights, self.keys)
        )

    def trim(self) -> None:
        """Forget slots past the last active one, and give memory back once three quarters are free."""
        active = (self.weights > 0).any(dim=1).nonzero()
        self._used = int(active.amax()) + 1 if len(active) else 1
        if self._used * _GROWTH**2 <= len(self.weights) and len(self.weights) > FIRST_SLOTS:
            size = max(FIRST_SLOTS, self._used * _GROWTH)
            self.vertices, self.weights, self.keys = (
                values[:size].clone() for values in (self.vertices, self.weights, self.keys)
            )

    def costs(self, gradient: Tensor) -> Tensor:
        """Return ⟨gradient, vertex⟩ for every slot in use, NaN where not active: (used, blocks)."""
        result = torch.empty_like(self.weights[: self._used])
        chunk = max(1, _CHUNK // max(1, gradient.numel()))
        for start in range(0, self._used, chunk):
            part = slice(start, min(start + chunk, self._used))
            lines = self.vertices[part].to(gradient.dtype)
            result[part] = torch.einsum("sbe,be->sb", lines, gradient)
        return result.masked_fill_(self.weights[: self._used] == 0, torch.nan)

    def at(self, slot: Tensor) -> Tensor:
        """Return the vertex in ``slot`` (blocks,) of each block: (blocks, entries), in the dtype of the weights."""
        return self.vertices[slot, torch.arange(len(slot), device=slot.device)].to(self.weights.dtype)

    def point(self) -> Tensor:
        """Return Σ weight · vertex per block, (blocks, entries), after scaling the weights to a sum of 1."""
        self.weights /= self.weights.sum(dim=0)
        total = torch.zeros(self.vertices.shape[1:], dtype=self.weights.dtype, device=self.weights.device)
        for slot in range(self._used):
            total.addcmul_(self.vertices[slot].to(total.dtype), self.weights[slot].unsqueeze(1))
        return total

    def ready(self) -> bool:
        """Make room for one more vertex a block; return whether ``limit`` left any."""
        if self._used == len(self.weights):
            self.trim()
        if self._used == len(self.weights):
            blocks, entries = self.vertices.shape[1:]
            self._grow(min(_GROWTH * self._used, self.limit // max(1, blocks * entries)))
        # Past the limit there may still be holes, in every block of which one is enough.
        return self._used < len(self.weights) or int(self.sizes().amax()) < len(self.weights)

    def slot_of(self, vertex: Tensor, wanted: Tensor) -> Tensor:
        """Return the slot of ``vertex`` (blocks, entries), put into a free one if new and ``wanted`` (blocks,).

        Call ``ready`` first.
        """
        key = self._key(vertex)
        active = self.weights[: self._used + 1] > 0
        same = active & (self.keys[: self._used + 1] == key)
        old = same.any(dim=0)
        # The first free slot: the one past those in use, or a hole before it.
        slot = torch.where(old, same.to(torch.uint8).argmax(dim=0), (~active).to(torch.uint8).argmax(dim=0))
        line = torch.arange(len(slot), device=slot.device)
        new = wanted & ~old
        self.vertices[slot, line] = torch.where(new.unsqueeze(1), vertex > 0, self.vertices[slot, line])
        self.keys[slot, line] = torch.where(new, key, self.keys[slot, line])
        self._used = min(self._used + 1, len(self.weights))
        return slot

    def _key(self, vertex: Tensor) -> Tensor:
        """Return a hash of each block's vertex: (blocks,) int64."""
        return ((vertex > 0) * self._salt).sum(dim=1)

    def _grow(self, slots: int) -> None:
        """Make room for ``slots`` vertices a block."""
        blocks, entries = self.vertices.shape[1:]
        more = max(0, slots - len(self.weights))
        self.vertices = torch.cat([self.vertices, self.vertices.new_zeros(more, blocks, entries)])
        self.weights = torch.cat([self.weights, self.weights.new_zeros(more, blocks)])
        self.keys = torch.cat([self.keys, self.keys.new_zeros(more, blocks)])
