"""Certificates by makers who lie: nothing is accepted above the optimum of the problem as given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from relaxprune import (
    NM,
    Certificate,
    CertificateError,
    KSparse,
    MaskCertificate,
    MaskProblem,
    ReconstructionProblem,
    TransposableNM,
    WeightCertificate,
    certify,
    certify_weights,
)
from tests.layers import correlated_gram
from tests.random_problems import Draw

SETS = [KSparse(4), KSparse(4, at_most=True), NM(2, 4), KSparse(29, per="layer"), TransposableNM(2, 4)]
ROWS, COLS = 4, 8


def refused(forged: Certificate, problem: MaskProblem | ReconstructionProblem) -> bool:
    try:
        forged.verify(problem)
    except CertificateError:
        return True
    return False


def proven(problem: MaskProblem, method: str) -> tuple[MaskCertificate, Tensor]:
    """A certificate of a bad mask, so that its own objective refuses nothing, and the optimum of every block."""
    mask = problem.polytope.round(Draw(9).normal(ROWS, COLS))
    optimum = certify(problem, mask, "exact").block_lower_bound
    return certify(problem, mask, method, max_iterations=3), optimum


def raised(certificate: MaskCertificate, claim: Tensor, **proof: object) -> MaskCertificate:
    """The certificate with another proof, which claims a little more than the optimum of every block."""
    claim = torch.minimum(claim * (1 + 1e-9), certificate.block_objective)
    return replace(
        certificate,
        proof=replace(certificate.proof, **proof),
        block_lower_bound=claim,
        lower_bound=float(claim.sum()) * (1 - 1e-12),
    )


def layer(polytope=SETS[0], tokens: int = 60, **fixed: Tensor) -> MaskProblem:
    draw = Draw(0)
    inputs = draw.normal(tokens, COLS)
    return MaskProblem(draw.normal(ROWS, COLS), inputs.T @ inputs / tokens, polytope, **fixed)


def dense(rows: int, cols: int, **values: Tensor) -> dict[str, Tensor]:
    """A proof in which every row is of method sdp."""
    none = torch.zeros(rows, dtype=torch.float64)
    return {
        "row_method": torch.full((rows,), 2, dtype=torch.int8),
        "dense_rows": torch.arange(rows),
        "dense_diagonal": torch.zeros(rows, cols, dtype=torch.float64),
        "dense_weight": none,
        "scale": torch.ones(rows, dtype=torch.float64),
        **values,
    }


@pytest.mark.parametrize("size", [1e3, 1e10, 1e20, 1e150, 1e300])
def test_a_huge_weight_of_the_count_proves_nothing(size):
    problem = layer()
    certificate, optimum = proven(problem, "sdp")
    weight = torch.full((ROWS,), size, dtype=torch.float64)
    proof = dense(ROWS, COLS, point=certificate.mask.double(), dense_weight=weight)
    assert refused(raised(certificate, optimum, **proof), problem)


@pytest.mark.parametrize("size", [1e3, 1e10, 1e200])
def test_a_point_far_away_proves_nothing(size):
    problem = layer()
    exact, optimum = proven(problem, "exact")
    assert refused(raised(exact, optimum, point=exact.proof.point.double() + size), problem)
    few = layer(tokens=4)  # a singular Gram: nothing changes along its null space
    plain, optimum = proven(few, "fw")
    null = torch.linalg.eigh(few.gram)[1][:, 0] / few.weight
    point = plain.proof.point.double() + size * null
    assert refused(raised(plain, optimum, point=point, scale=torch.ones_like(plain.proof.scale)), few)


@pytest.mark.parametrize("size", [-1e30, -1e5, 1e30])
def test_the_diagonal_of_a_fixed_entry_proves_nothing(size):
    fixed = torch.zeros(ROWS, COLS, dtype=torch.bool)
    fixed[:, 2] = True
    problem = layer(fixed_pruned=fixed)
    certificate, optimum = proven(problem, "sdp")
    diagonal = torch.zeros(ROWS, COLS, dtype=torch.float64)
    diagonal[:, 2] = size
    proof = dense(ROWS, COLS, point=certificate.mask.double(), dense_diagonal=diagonal)
    assert refused(raised(certificate, optimum, **proof), problem)


def _disturbed(tensor: Tensor, draw: Draw) -> Tensor:
    """The tensor with some entries moved, a little or out of all bounds."""
    size = 10 ** draw.uniform(-12, 30)
    return torch.where(draw.bits(0.4, *tensor.shape), tensor + size * draw.normal(*tensor.shape), tensor)


@pytest.mark.parametrize("polytope", SETS, ids=repr)
def test_no_disturbed_proof_is_accepted_above_the_optimum(polytope, seed, long_run):
    problem = layer(polytope, tokens=5)
    certificates = [proven(problem, method) for method in ("fw", "diagonal", "sdp", "exact")]
    draw = Draw(seed)
    names = ("point", "scale", "tightening", "dense_diagonal", "dense_weight", "cut_multiplier")
    for number in range(2000 if long_run else 60):
        certificate, optimum = certificates[number % 4]
        floats = {name: getattr(certificate.proof, name) for name in names}
        name = draw.pick(tuple(name for name, tensor in floats.items() if tensor is not None and tensor.numel()))
        forged = raised(certificate, optimum, **{name: _disturbed(floats[name].double(), draw)})
        assert refused(forged, problem), (certificate.method, name)


FORGED: dict[str, Callable[[WeightCertificate, Draw], WeightCertificate]] = {
    "point": lambda found, draw: replace(found, point=_disturbed(found.point, draw)),
    "tightening": lambda found, draw: replace(found, tightening=_disturbed(found.tightening, draw).abs()),
    "larger tightening": lambda found, draw: replace(found, tightening=found.tightening * 10 ** draw.uniform(0, 9)),
    "method": lambda found, draw: replace(found, method="exact", point=None, tightening=None),
    "trivial": lambda found, draw: replace(found, method="trivial", point=None, tightening=None),
}


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("polytope", SETS, ids=repr)
def test_no_disturbed_bound_of_weights_is_accepted_above_the_optimum(polytope, name, seed, long_run):
    draw = Draw(seed)
    problem = ReconstructionProblem(draw.normal(ROWS, COLS), correlated_gram(COLS, draw), polytope, damping=1e-3)
    weight = torch.zeros(ROWS, COLS, dtype=torch.float64)  # a bad answer: its own objective refuses nothing
    optimum = certify_weights(problem, weight, "exact").block_lower_bound
    found = certify_weights(problem, weight)
    claim = optimum * (1 + 1e-6)
    for _ in range(200 if long_run else 5):
        forged = replace(FORGED[name](found, draw), block_lower_bound=claim, lower_bound=float(claim.sum()))
        assert refused(forged, problem)
    honest = replace(found, block_lower_bound=found.block_lower_bound / 2, lower_bound=found.lower_bound / 2)
    honest.verify(problem)
