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
    solve,
)
from tests.layers import correlated_gram
from tests.random_problems import Draw

SETS = [KSparse(4), KSparse(4, at_most=True), NM(2, 4), KSparse(14, per="layer"), TransposableNM(2, 4)]
ROWS, COLS = 4, 8


def refused(forged: Certificate, problem: MaskProblem | ReconstructionProblem) -> bool:
    try:
        forged.verify(problem)
    except CertificateError:
        return True
    return False


def raised(certificate: MaskCertificate, factor: float, **proof: object) -> MaskCertificate:
    """The certificate with another proof, which claims so much of every block's objective."""
    claim = certificate.block_objective * factor
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
    best = replace(certify(problem, solve(problem), "exact"), method="sdp")
    weight = torch.full((ROWS,), size, dtype=torch.float64)
    proof = dense(ROWS, COLS, point=best.mask.double(), dense_weight=weight)
    assert refused(raised(best, 1.5, **proof), problem)


@pytest.mark.parametrize("size", [1e3, 1e10, 1e200])
def test_a_point_far_away_proves_nothing(size):
    problem = layer()
    exact = certify(problem, solve(problem), "exact")
    assert refused(raised(exact, 1.5, point=exact.proof.point.double() + size), problem)
    few = layer(tokens=4)  # a singular Gram: nothing changes along its null space
    plain = certify(few, solve(few), "fw")
    null = torch.linalg.eigh(few.gram)[1][:, 0] / few.weight
    point = plain.proof.point.double() + size * null
    assert refused(raised(plain, 1.5, point=point, scale=torch.ones_like(plain.proof.scale)), few)


@pytest.mark.parametrize("size", [-1e30, -1e5, 1e30])
def test_the_diagonal_of_a_fixed_entry_proves_nothing(size):
    fixed = torch.zeros(ROWS, COLS, dtype=torch.bool)
    fixed[:, 2] = True
    problem = layer(fixed_pruned=fixed)
    solution = solve(problem)
    certificate = replace(certify(problem, solution), method="sdp")
    diagonal = torch.zeros(ROWS, COLS, dtype=torch.float64)
    diagonal[:, 2] = size
    proof = dense(ROWS, COLS, point=solution.mask.double(), dense_diagonal=diagonal)
    assert refused(raised(certificate, 1.5, **proof), problem)


def _disturbed(tensor: Tensor, draw: Draw) -> Tensor:
    """The tensor with some entries moved, a little or out of all bounds."""
    size = 10 ** draw.uniform(-12, 30)
    return torch.where(draw.bits(0.4, *tensor.shape), tensor + size * draw.normal(*tensor.shape), tensor)


@pytest.mark.parametrize("polytope", SETS, ids=repr)
def test_no_disturbed_proof_is_accepted_above_the_optimum(polytope, seed, long_run):
    problem = layer(polytope, tokens=5)
    exact = certify(problem, solve(problem), "exact")
    draw = Draw(seed)
    accepted = 0
    for number in range(2000 if long_run else 60):
        method = ("fw", "diagonal", "sdp", "exact")[number % 4]
        certificate = certify(problem, exact.mask, method, max_iterations=3)
        proof = certificate.proof
        names = ("point", "scale", "tightening", "dense_diagonal", "dense_weight", "cut_multiplier")
        floats = {name: getattr(proof, name) for name in names if getattr(proof, name) is not None}
        name = draw.pick(tuple(name for name, tensor in floats.items() if tensor.numel()))
        forged = {name: _disturbed(floats[name].double(), draw)}
        accepted += not refused(raised(replace(certificate, method=method), 1 + 1e-9, **forged), problem)
    assert not accepted


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
    weight = solve(problem, polish=None if polytope.is_at_most() else "obs-swap").weight
    optimum = certify_weights(problem, weight, "exact", memory_budget_bytes=2**28).block_lower_bound
    found = certify_weights(problem, weight)
    claim = optimum * (1 + 1e-6)
    for _ in range(200 if long_run else 5):
        forged = replace(FORGED[name](found, draw), block_lower_bound=claim, lower_bound=float(claim.sum()))
        assert refused(forged, problem)
    honest = replace(found, block_lower_bound=found.block_lower_bound / 2, lower_bound=found.lower_bound / 2)
    honest.verify(problem)
