"""Token windows, with what identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from relaxprune.models.token_limits import check_windows
from relaxprune.problems.errors import RelaxPruneError


@dataclass(frozen=True)
class TokenWindows:
    """Token windows with what identifies them.

    Attributes:
        tokens: (windows, length) int64 on the CPU.
        source: the source that was asked for.
        sha256: of the shape and the tokens, see ``tokens_sha256``.
        description: JSON-ready facts: source, windows, length, seed, hashes, versions; of a mixture also those of
            its ``parts``, by source.
        kinds: the source of each window, (windows,).
    """

    tokens: torch.Tensor
    source: str
    sha256: str
    description: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def __str__(self) -> str:
        return f"{len(self)} windows of {self.tokens.shape[1]} tokens from {self.source} (sha256 {self.sha256[:12]})"


def tokens_sha256(tokens: torch.Tensor) -> str:
    """Return the SHA-256 of (windows, length) tokens: their shape as text, then little-endian int64, row by row."""
    content = tokens.to(dtype=torch.int64, device="cpu").contiguous().numpy().astype("<i8", copy=False).tobytes()
    return hashlib.sha256(f"{tuple(tokens.shape)}".encode() + content).hexdigest()


def windows_from_tokens(
    tokens: torch.Tensor,
    source: str = "tokens",
    description: dict[str, Any] | None = None,
    kinds: Sequence[str] | None = None,
) -> TokenWindows:
    """Wrap tokens that you have.

    Args:
        tokens: (windows, length) integer ids without padding.
        source: a name for reports.
        description: further JSON-ready facts.
        kinds: the source of each window; None for ``source``.

    Raises:
        RelaxPruneError: not an integer tensor, not two-dimensional, empty, or with negative ids; or not as many kinds.
    """
    check_windows(tokens)
    if int(tokens.min()) < 0:
        raise RelaxPruneError(f"tokens hold the negative id {int(tokens.min())}: padding marks are not allowed")
    own = tokens.detach().to(dtype=torch.int64, device="cpu", copy=True)
    sha256 = tokens_sha256(own)
    facts = {"source": source, "windows": own.shape[0], "length": own.shape[1], "sha256": sha256}
    labels = (source,) * len(own) if kinds is None else tuple(kinds)
    if len(labels) != len(own):
        raise RelaxPruneError(f"kinds must name a source for each of {len(own)} windows, got {len(labels)}")
    return TokenWindows(own, source, sha256, {**facts, **(description or {})}, labels)
