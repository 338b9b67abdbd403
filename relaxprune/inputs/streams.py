"""Which padding the layers of a model have."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Streams:
    """Which tokens layers read: those of ``attention_mask``, unless they are named here.

    Attributes:
        decoder: names of layers that read the tokens of ``decoder_attention_mask``.
        apart: names of layers that read none of them, such as image patches, and so have no padding.
    """

    decoder: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()

    def padding(self, name: str, kept: Tensor | None, decoder_kept: Tensor | None) -> Tensor | None:
        """Return the (batch, tokens) mask of a layer, of its own two."""
        if name in self.apart:
            return None
        return decoder_kept if name in self.decoder else kept


ONE_STREAM = Streams()
"""All layers read the tokens of ``attention_mask``."""
