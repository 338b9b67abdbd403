"""Certificates by makers who lie: nothing is accepted above the optimum of the problem as given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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

from . import forging, forging_targets

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


FLOATS = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
NAMES = forging_targets.names()
LAYERS = [name for name in NAMES if name.split(" / ")[0] in forging_targets.LAYERS]


def sampled(names: list[str], count: int, draw: Draw) -> list[forging_targets.Target]:
    """Some of the targets, or all of them."""
    order = torch.randperm(len(names), generator=draw.generator).tolist()
    return [forging_targets.target(names[place]) for place in order[:count]]


def one_of(targets: list[forging_targets.Target], draw: Draw) -> forging_targets.Target:
    return targets[draw.whole(0, len(targets) - 1)]


def test_honest_certificates_of_every_set_and_problem_hold(seed, long_run):
    tally = forging.Tally()
    for target in sampled(NAMES, len(NAMES) if long_run else 12, Draw(seed)):
        for certificate in target.certificates:
            for exact in (False, True):
                found = forging.judged(target, certificate, exact)
                assert found is not None, (target.name, certificate.method, exact)
                tally.count(found)
    print(f"honest: {tally}")
    assert not tally.above


@given(st.data())
def test_no_entry_of_any_tensor_buys_a_bound(data):
    target = forging_targets.target(data.draw(st.sampled_from(NAMES[::17])))
    honest = data.draw(st.sampled_from(target.certificates))
    parts = forging.parts_of(honest)
    name = data.draw(st.sampled_from([name for name, value in parts.items() if not isinstance(value, str)]))
    if isinstance(parts[name], Tensor) and parts[name].numel():
        tensor = parts[name].clone()
        numbers = FLOATS if tensor.is_floating_point() else st.integers(-100, 100)
        entry = torch.tensor(data.draw(numbers), dtype=torch.float64).to(tensor.dtype)
        tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = entry
        parts[name] = tensor
    else:
        parts[name] = data.draw(st.one_of(FLOATS, st.integers(), st.none(), st.text(max_size=3)))
    parts = forging.claiming(target, parts, Draw(data.draw(st.integers(0, 2**31))))
    found = forging.judged(target, forging.assembled(honest, parts), data.draw(st.booleans()))
    assert found is None or found <= 0, (target.name, honest.method, name)


@pytest.mark.parametrize(("exact", "short", "long"), [(False, 1000, 30_000), (True, 60, 1000)])
def test_random_forgeries_are_never_accepted_above_the_optimum(exact, short, long, seed, long_run):
    draw, tally = Draw(seed + exact), forging.Tally()
    targets = sampled(NAMES, len(NAMES) if long_run else 10, draw)
    for _ in range(long if long_run else short):
        target = one_of(targets, draw)
        honest, parts = forging.forged(target, draw)
        found = forging.judged(target, forging.assembled(honest, parts), exact)
        assert found is None or found <= 0, (target.name, honest.method)
        tally.count(found)
    print(f"random, {'rationals' if exact else 'float64'}: {tally}")
    assert tally.accepted


def test_an_optimising_forger_never_gets_above_the_optimum(seed, long_run):
    draw, tally = Draw(seed), forging.Tally()
    for target in sampled(NAMES, len(NAMES) if long_run else 6, draw):
        for certificate in target.certificates:
            forging.climbed(target, certificate, 40 if long_run else 25, draw, tally)
    print(f"climbed: {tally}")
    assert tally.accepted and not tally.above


def test_forged_files_never_pass_the_command_above_the_optimum(seed, long_run, tmp_path):
    draw, tally = Draw(seed), forging.Tally()
    targets = sampled(LAYERS, 60 if long_run else 6, draw)
    for _ in range(3000 if long_run else 120):
        target = one_of(targets, draw)
        honest, parts = forging.forged(target, draw)
        found = forging.by_command(target, parts, tmp_path, draw)
        assert found is None or found <= 0, (target.name, honest.method)
        tally.count(found)
    print(f"files: {tally}")
    assert tally.accepted
