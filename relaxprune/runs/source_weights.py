"""Whether a model is the one that a run pruned, by the SHA-256 that the run's record has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from relaxprune.models.loading import LoadedModel

from .fingerprint import weights_sha256


def is_source(record: Mapping[str, Any], loaded: LoadedModel, load: Callable[[str], LoadedModel]) -> bool:
    """Tell whether a model has the weights that a run pruned.

    Args:
        record: the run's.
        loaded: the model as it is stored.
        load: loads it in another dtype, by name: the run took the checksum in the one that it computed in, which is the
            stored one unless ``--dtype`` was given.
    """
    facts = record["fingerprint"]["model"]
    wanted: str = facts["weights_sha256"]
    return weights_sha256(loaded.model) == wanted or weights_sha256(load(facts.get("dtype") or "auto").model) == wanted
