"""What decides a run's result, as plain JSON values: two runs with equal fingerprints give the same masks.

A run folder keeps the fingerprint from its start; ``--resume`` computes it anew and refuses if anything differs,
because blocks solved under other conditions must not be mixed (see ``changes`` for how the refusal is worded).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from relaxprune.options.prune_options import PERMUTE_BY, PruneOptions
from relaxprune.residency.store import store_of
from relaxprune.support.tensor_bits import checksum

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class Fingerprint:
    """Everything that a run's masks depend on.

    Attributes:
        model: source, resolved commit, class, dtype and the SHA-256 of every weight before pruning.
        calibration: source, SHA-256 of the token windows, their count and length, seed.
        settings: solver and its options, polytope, layer selection, budgets, seed, device, threads.
        software: versions of relaxprune, Python, the libraries whose arithmetic or text handling is used, and the
            packages that the solver computes with.
    """

    model: dict[str, Any]
    calibration: dict[str, Any]
    settings: dict[str, Any]
    software: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fingerprint as it reads after a round trip through JSON (tuples become lists)."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain


def software_versions(distributions: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions that can change a run's result.

    Args:
        distributions: installed packages that this run's solver depends on.
    """
    from relaxprune import __version__

    versions = {"relaxprune": __version__, "python": platform.python_version()}
    return versions | {name: _version(name) for name in (*_LIBRARIES, *distributions)}


def _version(name: str) -> str:
    """Return a distribution's version; a backend may be importable without being installed as one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def weights_sha256(model: nn.Module, dtypes: Mapping[str, torch.dtype] | None = None) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of every parameter and buffer that is saved with the model.

    Args:
        model: any module with dense tensors.
        dtypes: name -> dtype that a tensor is cast to first; those without one are taken as they are.

    Returns:
        The digest in hexadecimal; it does not depend on the device or the order of the modules.
    """
    state, wanted, store = model.state_dict(keep_vars=True), dtypes or {}, store_of(model)
    tensors = ((name, store.values(state[name])) for name in sorted(state))
    return checksum((name, tensor.to(wanted.get(name, tensor.dtype))) for name, tensor in tensors)


def changes(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name every leaf in which two fingerprints differ.

    Args:
        then: the stored fingerprint, as ``to_dict`` gives it.
        now: the present one.
        prefix: the dotted path of both, for the recursion.

    Returns:
        One phrase per difference, such as ``"settings.seed was 0 and is now 1"``; empty if they are equal.
    """
    found = []
    for key in sorted({*then, *now}):
        name = f"{prefix}{key}"
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changes(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name} was {json.dumps(old)} and is now {json.dumps(new)}")
    return found


def as_now(then: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored fingerprint with what those of older runs lack: they ran without it."""
    settings, model = then.get("settings") or {}, then.get("model") or {}
    older = plain_values(asdict(PruneOptions()))
    if settings.get("permute"):
        older["permute_by"] = PERMUTE_BY[0]
    return {**then, "model": {"rotation": None, **model}, "settings": {**older, **settings}}


def plain_values(value: Any) -> Any:
    """Return ``value`` in JSON's own types: a tuple becomes a list, a value of any other type its text."""
    return json.loads(json.dumps(value, allow_nan=False, default=str))
