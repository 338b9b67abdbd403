"""A solved layer on its way from the rank that solved it to all others."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from relaxprune.certificates import MaskCertificate, load_certificate
from relaxprune.models.layers import PrunableLayer

from .layer_report import LayerReport
from .mask_solver import LayerInputs, MaskSolver, Proven, SolvedLayer

_FILE = "certificate.safetensors"


def parcel(solved: SolvedLayer) -> dict[str, Any]:
    """Return everything about a solved layer but the layer itself, as ``Ranks.exchange`` takes it; masks as bits."""
    return {
        "mask": solved.mask,
        "report": solved.report.to_dict(),
        "weight": solved.weight,
        "support": None if torch.equal(solved.support, solved.mask) else solved.support,
        "proof": None if solved.proof is None else _file_of(solved.proof),
    }


def opened(facts: dict[str, Any], layer: PrunableLayer, inputs: LayerInputs, mask_solver: MaskSolver) -> SolvedLayer:
    """Undo ``parcel``.

    Args:
        facts: what it made.
        layer: the layer, as it was when it was solved.
        inputs: its inputs, equal to those that it was solved with.
        mask_solver: of the run.
    """
    mask, support, proof = facts["mask"], facts["support"], facts["proof"]
    return SolvedLayer(
        layer=layer,
        mask=mask,
        report=LayerReport.from_dict(facts["report"]),
        proof=None if proof is None else (_certificate(proof), mask_solver.problem(layer, inputs)),
        weight=facts["weight"],
        support=mask if support is None else support,
    )


def _file_of(proof: Proven) -> torch.Tensor:
    """Return the file of a certificate, (bytes,) uint8."""
    certificate, problem = proof
    with TemporaryDirectory() as folder:
        path = Path(folder) / _FILE
        certificate.save(problem, path)
        return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


def _certificate(data: torch.Tensor) -> MaskCertificate:
    """Return the certificate of a file, (bytes,) uint8."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / _FILE
        path.write_bytes(data.numpy().tobytes())
        found = load_certificate(path)
    assert isinstance(found, MaskCertificate)  # ``_file_of`` gets no other
    return found
