"""One base of certificates: both kinds are saved, loaded and verified alike, and say what they are for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from relaxprune import (
    NM,
    CertificateError,
    KSparse,
    MaskCertificate,
    MaskProblem,
    QuadraticProblem,
    ReconstructionProblem,
    RelaxPruneError,
    WeightCertificate,
    certify,
    certify_weights,
    load_certificate,
    solve,
)
from relaxprune.certificates.verify.claim_file import FORMAT
from relaxprune.certificates.verify.subject import Subject
from relaxprune.cli import main
from relaxprune.support.container import write_container
from tests.layers import correlated_gram
from tests.random_problems import Draw


def moving(polytope=None, *, joint: bool = False, damping: float = 0.03) -> ReconstructionProblem:
    """A (4, 12) problem whose weights move, with the dense model's inputs too where ``joint``."""
    draw = Draw(3)
    weight, dense = draw.normal(4, 12), draw.normal(80, 12) @ draw.normal(12, 12)
    pruned = dense + 0.3 * draw.normal(80, 12) if joint else dense
    both = {"cross": dense.T @ pruned / 80, "dense_gram": dense.T @ dense / 80} if joint else {}
    return ReconstructionProblem(weight, pruned.T @ pruned / 80, polytope or KSparse(6), damping=damping, **both)


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), dict(file.metadata())


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("method", ["perspective", "exact", "trivial"])
def test_weights_round_trip_and_verify(method, joint, tmp_path):
    problem = moving(joint=joint)
    certificate = certify_weights(problem, solve(problem).weight, "exact" if method == "exact" else "perspective")
    if method == "trivial":
        rest = problem.residual_of_blocks().clamp(min=0.0)
        certificate = replace(
            certificate,
            method=method,
            point=None,
            tightening=None,
            block_lower_bound=rest,
            lower_bound=float(rest.sum()) * (1 - 1e-12),
        )
    certificate.save(problem, tmp_path / "c")
    loaded = load_certificate(tmp_path / "c")
    assert isinstance(loaded, WeightCertificate) and torch.equal(loaded.weight, certificate.weight)
    for name in ("method", "objective", "lower_bound", "gap", "relative_gap", "seconds"):
        assert getattr(loaded, name) == getattr(certificate, name)
    for exact in (False, True):
        seen = loaded.verify(problem, exact=exact)
        assert seen.method == method and seen.rows_by_method == {method: 4}
        assert seen.lower_bound >= certificate.lower_bound
        assert seen.objective == pytest.approx(certificate.objective)


@pytest.mark.parametrize("polytope", [NM(2, 4), KSparse(24, per="layer"), KSparse(6, at_most=True)], ids=repr)
def test_weights_of_every_set_verify(polytope):
    problem = moving(polytope)
    for exact in (False, True):
        solve(problem).certificate.verify(problem, exact=exact)


def test_weights_where_the_gram_leaves_no_diagonal():
    gram = torch.ones(4, 4, dtype=torch.float64) + 1e-13 * torch.eye(4, dtype=torch.float64)
    problem = ReconstructionProblem(torch.ones(2, 4), gram, KSparse(2))
    certificate = certify_weights(problem, torch.tensor([[2.0, 2.0, 0.0, 0.0]]).repeat(2, 1))
    assert certificate.method == "trivial" and certificate.lower_bound == 0.0
    certificate.verify(problem, exact=True)


def test_a_certificate_of_the_other_kind_of_problem_is_refused():
    problem = moving()
    mask_problem = MaskProblem(problem.weight, problem.prepared.matrix, problem.polytope)
    with pytest.raises(RelaxPruneError, match="problem must be a mask or quadratic problem"):
        certify(mask_problem, solve(mask_problem)).verify(problem)
    with pytest.raises(RelaxPruneError, match="problem must be a ReconstructionProblem"):
        solve(problem).certificate.verify(mask_problem)


def test_infinite_numbers_are_not_saved(tmp_path):
    problem = moving()
    certificate = replace(solve(problem).certificate, objective=float("inf"))
    with pytest.raises(RelaxPruneError, match="finite objective"):
        certificate.save(problem, tmp_path / "c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["weight", "gram", "set", "linear", "quadratic", "cross", "dense_gram", "faces"])
def test_it_says_what_it_is_for(what, tmp_path):
    draw = Draw(1)
    weight, gram = draw.normal(2, 8), correlated_gram(8, draw)
    near, other = weight.clone(), gram.clone()
    near[0, 0] = torch.nextafter(near[0, 0], near[0, 0] + 1)
    other[2, 2] = torch.nextafter(other[2, 2], other[2, 2] + 1)
    fixed = torch.zeros(2, 8, dtype=torch.bool)
    fixed[1, 1] = True
    given, changed = {
        "weight": (MaskProblem(weight, gram, KSparse(4)), MaskProblem(near, gram, KSparse(4))),
        "gram": (MaskProblem(weight, gram, KSparse(4)), MaskProblem(weight, other, KSparse(4))),
        "set": (MaskProblem(weight, gram, KSparse(4)), MaskProblem(weight, gram, KSparse(4, at_most=True))),
        "faces": (
            MaskProblem(weight, gram, KSparse(4), fixed_kept=fixed),
            MaskProblem(weight, gram, KSparse(4), fixed_pruned=fixed),
        ),
        "linear": (QuadraticProblem(gram, weight, KSparse(4)), QuadraticProblem(gram, near, KSparse(4))),
        "quadratic": (QuadraticProblem(gram, weight, KSparse(4)), QuadraticProblem(other, weight, KSparse(4))),
        "cross": tuple(
            ReconstructionProblem(weight, gram, KSparse(4), cross=cross, dense_gram=gram) for cross in (gram, other)
        ),
        "dense_gram": tuple(
            ReconstructionProblem(weight, gram, KSparse(4), cross=gram, dense_gram=dense) for dense in (gram, other)
        ),
    }[what]
    certificate = solve(given).certificate
    certificate.save(given, tmp_path / "c")
    loaded = load_certificate(tmp_path / "c")
    loaded.verify(given)
    name = "set" if what == "faces" else what
    with pytest.raises(CertificateError, match=f"is for another {name}: SHA-256"):
        loaded.verify(changed)


def test_the_hash_is_of_the_values_whatever_holds_them():
    draw = Draw(2)
    weight, gram = draw.normal(2, 8).to(torch.bfloat16), correlated_gram(8, draw).float()
    none = torch.zeros(2, 8, dtype=torch.bool)
    one = Subject.of(MaskProblem(weight, gram, KSparse(4)))
    wide = weight.double().T.contiguous().T
    other = Subject.of(MaskProblem(wide, gram.double(), KSparse(4), fixed_kept=none))
    assert one.sha256 == other.sha256 and set(one.sha256) == {"weight", "gram", "set"}


def test_files_of_the_first_version_are_read_and_verified(tmp_path):
    draw = Draw(4)
    problem = MaskProblem(draw.normal(3, 12), correlated_gram(12, draw), KSparse(6))
    certificate = certify(problem, solve(problem), "sdp")
    certificate.save(problem, tmp_path / "c")
    tensors, metadata = contents(tmp_path / "c")
    first = {"block_objective": "row_objective", "block_lower_bound": "row_lower_bound", "tightening": "share"}
    description = json.loads(metadata["description"])
    description["polytope"] = description.pop("subject")["polytope"]
    del description["kind"]
    save_file(
        {first.get(name, name): tensor for name, tensor in tensors.items()},
        tmp_path / "first",
        {**metadata, "schema_version": "1", "description": json.dumps(description)},
    )
    loaded = load_certificate(tmp_path / "first")
    assert isinstance(loaded, MaskCertificate) and loaded.subject.sha256 == {}
    assert loaded.verify(problem) == certificate.verify(problem)


def test_tensors_that_nothing_rests_on_are_refused(tmp_path):
    problem = moving()
    solve(problem).certificate.save(problem, tmp_path / "c")
    tensors, metadata = contents(tmp_path / "c")
    described = {"description": metadata["description"]}
    write_container(tmp_path / "c", FORMAT, tensors | {"more": torch.zeros(1)}, described)
    with pytest.raises(RelaxPruneError, match="has a tensor 'more'"):
        load_certificate(tmp_path / "c")
    del tensors["point"]
    write_container(tmp_path / "c", FORMAT, tensors, described)
    with pytest.raises(CertificateError, match="point belongs to method 'perspective'"):
        load_certificate(tmp_path / "c").verify(problem)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("more", [[], ["--certify", "exact"]], ids=["own", "exact"])
def test_weights_from_the_command_line(joint, more, tmp_path, capsys):
    problem, file, proof = moving(joint=joint, damping=0.0), tmp_path / "layer", tmp_path / "proof"
    tensors = {"weight": problem.weight, "gram": problem.prepared.matrix}
    if problem.cross is not None and problem.dense_gram is not None:
        tensors |= {"cross": problem.cross, "dense_gram": problem.dense_gram}
    save_file(tensors, file)
    words = ["solve", str(file), "--sparsity", "0.5", "--refit", "--damping", "0.01", *more]
    assert main([*words, "--certificate", str(proof)]) == 0
    capsys.readouterr()
    for exact in ([], ["--exact"]):
        assert main(["verify", str(file), str(proof), *exact]) == 0
        said = capsys.readouterr().out
        assert "damping              0.01" in said and ("exact 4" if more else "perspective 4") in said
    tensors["weight"][1, 3] *= 1.5
    save_file(tensors, file)
    assert main(["verify", str(file), str(proof)]) == 3
    said = capsys.readouterr()
    assert "does not hold: the certificate is for another weight" in said.err and not said.out
