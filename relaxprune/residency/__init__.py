"""Where a model's weights and its hidden states live during a run, and how they travel to the device and back."""

from __future__ import annotations

from .residency import PLACES, Residency

__all__ = ["PLACES", "Residency"]
