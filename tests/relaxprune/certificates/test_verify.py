"""Certificates on disk, and their verification: true ones pass, every tampering is found."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from relaxprune import (
    KSparse,
    MaskProblem,
    QuadraticProblem,
    RelaxPruneError,
    TransposableNM,
    certify,
    solve,
)
from relaxprune.certificates import CertificateError, MaskCertificate, load_certificate
from relaxprune.certificates.verify.claim_file import FORMAT
from relaxprune.cli import main
from relaxprune.support.container import write_container
from tests.conftest import LONG
from tests.layers import POLYTOPES, correlated_gram, layer
from tests.random_problems import Draw, random_case

METHODS = ("fw", "diagonal", "sdp", "exact")


@cache
def proven(method: str = "sdp", name: str = "row", fixed: bool = False) -> tuple[MaskProblem, MaskCertificate]:
    """A (6, 24) problem and a certificate that holds; made once, since none is changed in place."""
    problem, _ = layer(name, fixed=fixed)
    return problem, certify(problem, solve(problem, "wanda").mask, method, max_iterations=60)


def changed(certificate: MaskCertificate, **values: object) -> MaskCertificate:
    """The certificate with other numbers in its proof."""
    return replace(certificate, proof=replace(certificate.proof, **values))


@pytest.mark.parametrize(
    ("name", "fixed"),
    [(name, fixed) for place, name in enumerate(POLYTOPES) for fixed in (False, True) if LONG or (place + fixed) % 2],
)
def test_every_set_round_trips_and_verifies(name, fixed, tmp_path):
    for method in ("sdp",):
        problem, certificate = proven(method, name, fixed)
        certificate.save(problem, tmp_path / "c")
        loaded = load_certificate(tmp_path / "c")
        assert isinstance(loaded, MaskCertificate) and loaded.subject is not None
        for item in fields(certificate):
            if item.name in ("mask", "block_objective", "block_lower_bound"):
                assert torch.equal(getattr(loaded, item.name), getattr(certificate, item.name))
            elif item.name not in ("proof", "subject"):
                assert getattr(loaded, item.name) == getattr(certificate, item.name)
        for item in fields(certificate.proof):
            one, other = getattr(loaded.proof, item.name), getattr(certificate.proof, item.name)
            assert (one is None and other is None) or (one.dtype == other.dtype and torch.equal(one, other))
        assert (loaded.subject.fixed_kept is not None) == fixed
        found = [loaded.verify(problem)] + ([loaded.verify(problem, exact=True)] if method == "sdp" else [])
        for seen in found:
            assert seen.method == method and seen.rows_checked == 6
            assert seen.lower_bound >= certificate.lower_bound
            assert seen.lower_bound == pytest.approx(certificate.lower_bound, rel=1e-3)


@pytest.mark.parametrize("polytope", [TransposableNM(2, 4), TransposableNM(3, 8)])
@pytest.mark.parametrize("fixed", [False, True])
def test_transposable_sets_verify(polytope, fixed):
    draw = Draw(1)
    weight, gram = draw.normal(8, 16), correlated_gram(16, draw)
    mask = polytope.round(draw.uniform(0, 1, 8, 16))
    entries = {"fixed_kept": mask & draw.bits(0.2, 8, 16), "fixed_pruned": ~mask & draw.bits(0.2, 8, 16)}
    problem = MaskProblem(weight, gram, polytope, **(entries if fixed else {}))
    for method in ("diagonal", "sdp"):
        certificate = certify(problem, mask, method, max_iterations=30)
        assert certificate.verify(problem).lower_bound >= certificate.lower_bound
        assert certificate.verify(problem, exact=True).arithmetic == "rational"


def test_hard_problems_verify_in_both_arithmetics(long_run, seed):
    """Gram matrices that are singular, indefinite, dead or badly scaled, and every method."""
    for number in range(400 if long_run else 10):
        case = random_case(seed * 10**6 + 700_000 + number)
        solution = solve(case.problem, max_iterations=20)
        for method in METHODS:
            certificate = certify(case.problem, solution, method)
            for exact in (False, True):
                certificate.verify(case.problem, exact=exact)


def test_a_plain_quadratic_verifies():
    draw = Draw(3)
    problem = QuadraticProblem(correlated_gram(10, draw), 5 * draw.normal(3, 10), KSparse(4))
    solution = solve(problem)
    for method in METHODS:
        for exact in (False, True):
            certify(problem, solution, method).verify(problem, exact=exact)


def test_too_large_for_rationals_is_refused():
    problem = MaskProblem(torch.ones(1, 25), torch.eye(25), KSparse(5))
    certificate = certify(problem, solve(problem, "wanda").mask)
    certificate.verify(problem)
    with pytest.raises(RelaxPruneError, match="up to 64 rows and 24 columns"):
        certificate.verify(problem, exact=True)


@pytest.mark.parametrize("exact", [False, True])
def test_a_raised_diagonal_is_found(exact):
    problem, certificate = proven("diagonal")
    tightening = certificate.proof.tightening
    with pytest.raises(CertificateError, match="rows of method diagonal"):
        changed(certificate, tightening=tightening + 0.05 * tightening.abs()).verify(problem, exact=exact)
    problem, certificate = proven("sdp")
    dense = certificate.proof.dense_diagonal
    assert len(dense)
    with pytest.raises(CertificateError, match=r"not convex for row \d|bound of row \d"):
        changed(certificate, dense_diagonal=dense + 1e-3 * dense.abs()).verify(problem, exact=exact)
    with pytest.raises(CertificateError, match=r"not convex for row \d"):
        changed(certificate, dense_diagonal=dense + 0.2 * dense.abs()).verify(problem, exact=exact)


def test_a_shift_that_is_too_small_is_found():
    draw = Draw(8)
    inputs = draw.normal(6, 12)
    problem = MaskProblem(draw.normal(2, 12), inputs.T @ inputs - 1e-5 * torch.eye(12), KSparse(6))
    certificate = certify(problem, solve(problem, "enumerate").mask)
    certificate.verify(problem)
    with pytest.raises(CertificateError, match="not convex for rows of method fw"):
        replace(certificate, checks={**certificate.checks, "shift": 0.0}).verify(problem)
    with pytest.raises(CertificateError, match="shift"):
        replace(certificate, checks={**certificate.checks, "shift": float("nan")}).verify(problem)


def test_wrong_multipliers_weights_and_cuts_are_found():
    problem, certificate = proven("sdp")
    proof = certificate.proof
    assert len(proof.cut_row)
    index, sign, multiplier = proof.cut_index.clone(), proof.cut_sign.clone(), proof.cut_multiplier.clone()
    place = int(multiplier.argmax())
    multiplier[place] *= -1
    sign[place, 0] = 2
    index[place, 2] = index[place, 1]
    outside = proof.cut_index.clone()
    outside[place, 2] = 25
    for what, values in {
        "multiplier below 0": {"cut_multiplier": multiplier},
        "signs other than": {"cut_sign": sign},
        "three different entries": {"cut_index": index},
        "different entries": {"cut_index": outside},
        "the weight": {"dense_weight": -1 - proof.dense_weight},
        "not the rows whose method is sdp": {"row_method": torch.zeros_like(proof.row_method)},
        "holds NaN": {"cut_multiplier": multiplier * torch.nan},
        "has shape": {"point": proof.point[:, 1:]},
    }.items():
        with pytest.raises(CertificateError, match=what):
            changed(certificate, **values).verify(problem)


def test_a_weight_without_a_count_of_the_row_is_found():
    problem, certificate = proven("sdp", "layer")
    assert len(certificate.proof.dense_weight)
    with pytest.raises(CertificateError, match="the weight"):
        changed(certificate, dense_weight=certificate.proof.dense_weight + 1).verify(problem)


def test_a_tangent_off_the_fixed_entries_is_found():
    problem, certificate = proven("sdp", "row", fixed=True)
    assert len(certificate.proof.dense_rows)
    with pytest.raises(CertificateError, match="lack their fixed values"):
        changed(certificate, point=0.5 + 0 * certificate.proof.point).verify(problem)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exact", [False, True])
def test_raised_bounds_are_found(method, exact):
    draw = Draw(6)
    problem = MaskProblem(draw.normal(3, 12), correlated_gram(12, draw), KSparse(5))
    certificate = certify(problem, solve(problem, "wanda").mask, method)
    certificate.verify(problem, exact=exact)
    with pytest.raises(CertificateError, match="sum to"):
        replace(certificate, lower_bound=certificate.lower_bound * (1 + 1e-6)).verify(problem, exact=exact)
    if method != "sdp":  # its bound gives more than that away to rounding, where ρ is large
        raised = certificate.block_lower_bound * (1 + 1e-6)
        with pytest.raises(CertificateError, match="the bound of row"):
            replace(certificate, block_lower_bound=raised).verify(problem, exact=exact)
    raised = certificate.block_lower_bound * 1.02
    with pytest.raises(CertificateError, match="the bound of row"):
        replace(certificate, block_lower_bound=raised).verify(problem, exact=exact)


@pytest.mark.parametrize("name", POLYTOPES)
def test_a_flipped_entry_and_a_changed_weight_are_found(name):
    problem, certificate = proven("fw", name)
    for row, column in ((0, 0), (3, 5), (5, 23)):
        mask = certificate.mask.clone()
        mask[row, column] ^= True
        with pytest.raises(CertificateError, match=r"mask is not in|objective"):
            replace(certificate, mask=mask).verify(problem)
    weight = problem.weight.clone()
    weight[2, 7] += 0.01
    other = MaskProblem(weight, problem.gram, problem.polytope)
    with pytest.raises(CertificateError, match=r"objective|bound"):
        certificate.verify(other)


def test_files_that_are_no_certificates_are_refused(tmp_path):
    problem, certificate = proven("fw")
    path = tmp_path / "c.safetensors"
    certificate.save(problem, path)
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    path.write_bytes(whole[:-9])
    with pytest.raises(RelaxPruneError, match="is damaged"):
        load_certificate(path)
    save_file(tensors, path)
    with pytest.raises(RelaxPruneError, match="not a certificate file"):
        load_certificate(path)
    save_file(tensors, path, {**metadata, "schema_version": "3"})
    with pytest.raises(RelaxPruneError, match="schema version '3'"):
        load_certificate(path)
    described = {"description": metadata["description"]}
    write_container(path, FORMAT, {name: value for name, value in tensors.items() if name != "scale"}, described)
    with pytest.raises(RelaxPruneError, match="no tensor 'scale'"):
        load_certificate(path)
    write_container(path, FORMAT, tensors, {"description": "{}"})
    with pytest.raises(RelaxPruneError, match="not whole"):
        load_certificate(path)
    with pytest.raises(RelaxPruneError, match="does not exist"):
        load_certificate(tmp_path / "none")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = Draw(2)
    file, proof = tmp_path / "layer.safetensors", tmp_path / "proof.safetensors"
    weight, gram = draw.normal(4, 16), correlated_gram(16, draw)
    save_file({"weight": weight, "gram": gram}, file)
    words = ["solve", str(file), "--pattern", "2:4"]
    assert main([*words, "--certify", "diagonal", "--certificate", str(proof)]) == 0
    assert "proven by       diagonal, 4 rows" in capsys.readouterr().out
    assert main(["verify", str(file), str(proof)]) == 0
    assert "float64" in capsys.readouterr().out
    assert main(["verify", str(file), str(proof), "--exact"]) == 0
    assert "rational" in capsys.readouterr().out
    weight[1, 3] *= 1.5
    save_file({"weight": weight, "gram": gram}, file)
    assert main(["verify", str(file), str(proof)]) == 3
    said = capsys.readouterr()
    assert "does not hold" in said.err and len(said.err.splitlines()) == 1 and not said.out
    proof.write_bytes(proof.read_bytes()[:-1])
    assert main(["verify", str(file), str(proof)]) == 2
    assert main([*words, "--certify", "sdpp"]) == 2
