"""Certificates on disk: one safetensors file with the mask, the numbers of the proof, and the set that it is for.

Layout, format version 1: one tensor for every tensor of ``Proof`` (``share``, the tightening, if any), ``mask``,
``row_objective`` and ``row_lower_bound``, and of a face ``fixed_kept`` and ``fixed_pruned``; masks are uint8. The
metadata holds ``format``, ``schema_version`` and ``description``, JSON with the certificate's numbers, written so that
every float is read back as it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from relaxprune.problems import Face, Polytope, RelaxPruneError
from relaxprune.support.durable import write_bytes

from .certificate import Certificate, Estimate
from .underestimator import Proof

FORMAT = "relaxprune.certificate"
SCHEMA_VERSION = "1"
_FIXED = ("fixed_kept", "fixed_pruned")
_PROOF = tuple(item.name for item in fields(Proof))
_TENSORS = ("mask", "block_objective", "block_lower_bound", *(name for name in _PROOF if name != "tightening"))
# Names of the first version of the format that are others in the code by now.
_STORED_AS = {"block_objective": "row_objective", "block_lower_bound": "row_lower_bound", "tightening": "share"}
_KINDS: dict[str, Any] = {
    "method": str,
    "objective": (int, float),
    "lower_bound": (int, float),
    "rows_covered": int,
    "checks": dict,
    "relaxed_objective": (int, float),
    "seconds": (int, float),
}


def save_certificate(certificate: Certificate, polytope: Polytope, path: str | Path) -> None:
    """Write a certificate durably: the file appears whole or not at all.

    Args:
        certificate: the certificate.
        polytope: the set of masks of the problem that it is for.
        path: the file to create or replace.

    Raises:
        OSError: if the file cannot be written.
    """
    tensors = {name: getattr(certificate.proof, name) for name in _PROOF}
    tensors |= {"mask": certificate.mask, "block_objective": certificate.block_objective}
    tensors |= {"block_lower_bound": certificate.block_lower_bound}
    tensors |= dict(zip(_FIXED, polytope.fixed(), strict=True))
    estimate = certificate.estimate
    description: dict[str, Any] = {name: getattr(certificate, name) for name in _KINDS}
    description["estimate"] = None if estimate is None else asdict(estimate)
    description["polytope"] = (polytope.base if isinstance(polytope, Face) else polytope).to_dict()
    metadata = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "description": json.dumps(description, allow_nan=False),
    }
    stored = {_STORED_AS.get(name, name): _stored(tensor) for name, tensor in tensors.items() if tensor is not None}
    write_bytes(Path(path), save(stored, metadata))


def load_certificate(path: str | Path) -> tuple[Certificate, dict[str, Any]]:
    """Read a certificate; nothing of what it says is believed before ``Certificate.verify``.

    Args:
        path: a file that ``save_certificate`` made.

    Returns:
        The certificate, on the CPU, and the description: ``schema_version``, the certificate's numbers, ``polytope`` as
        ``polytope_from_dict`` takes it, and ``fixed_kept`` and ``fixed_pruned``, (rows, cols) bool or None.

    Raises:
        RelaxPruneError: there is no such file, it is no certificate, of another version, damaged, or incomplete.
    """
    path = Path(path)
    if not path.is_file():
        raise RelaxPruneError(f"certificate file {str(path)!r} does not exist")
    tensors, metadata = _read(path)
    tensors |= {name: tensors.pop(stored) for name, stored in _STORED_AS.items() if stored in tensors}
    if metadata.get("format") != FORMAT:
        raise RelaxPruneError(f"{str(path)!r} is not a certificate file: its metadata must say format {FORMAT!r}")
    version = metadata.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RelaxPruneError(
            f"certificate file {str(path)!r} has schema version {version!r}, this relaxprune reads {SCHEMA_VERSION!r}"
        )
    missing = [name for name in _TENSORS if name not in tensors]
    if missing:
        raise RelaxPruneError(f"certificate file {str(path)!r} has no tensor {missing[0]!r}")
    try:
        description = json.loads(metadata["description"])
        estimate = description["estimate"]
        _check_description(description)
        certificate = Certificate(
            **{name: description[name] for name in _KINDS},
            estimate=None if estimate is None else Estimate(**estimate),
            block_objective=tensors["block_objective"],
            block_lower_bound=tensors["block_lower_bound"],
            mask=tensors["mask"].bool(),
            proof=Proof(**{name: tensors.get(name) for name in _PROOF}),  # type: ignore[arg-type]
        )
        polytope = dict(description["polytope"])
    except (KeyError, TypeError, ValueError) as error:
        raise RelaxPruneError(f"certificate file {str(path)!r} has a description that is not whole: {error}") from error
    masks = {name: tensors[name].bool() if name in tensors else None for name in _FIXED}
    return certificate, {**description, "polytope": polytope, "schema_version": version, **masks}


def _check_description(description: dict[str, Any]) -> None:
    """Raise TypeError where an entry is of another type than is written."""
    for name, kind in _KINDS.items():
        value = description[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")


def _stored(tensor: Tensor) -> Tensor:
    """Return a tensor of its own memory on the CPU, a mask as uint8."""
    plain = tensor.detach().cpu()
    return (plain.to(torch.uint8) if plain.dtype == torch.bool else plain).clone(memory_format=torch.contiguous_format)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor and the metadata, or say that the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError, OSError) as error:
        raise RelaxPruneError(f"certificate file {str(path)!r} is damaged or truncated: {error}") from error
