"""Cases that once gave a wrong bound, or could: each is judged in rationals or by enumeration."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from relaxprune import (
    NM,
    KSparse,
    MaskProblem,
    QuadraticProblem,
    RelaxPruneError,
    certify,
    solve,
)
from relaxprune.certificates import CertificateError, load_certificate
from relaxprune.certificates.underestimator import tangent_bound
from relaxprune.certificates.verify.claim_file import FORMAT
from relaxprune.cli import main
from relaxprune.support.container import write_container
from tests.enumeration import Rule, best_mask, exact_objective
from tests.layers import POLYTOPES, correlated_gram, layer
from tests.random_problems import Draw

METHODS = ("fw", "diagonal", "sdp", "exact")
F64 = torch.float64


@cache
def proven(method="sdp"):
    """A (6, 24) problem, a mask and its certificate; made once, since none is changed in place."""
    problem, _ = layer("row")
    mask = solve(problem).mask
    return problem, mask, certify(problem, mask, method)


@pytest.mark.parametrize("name", POLYTOPES)
def test_certifying_leaves_the_solution_alone_and_gives_the_same_again(name):
    problem, _ = layer(name)
    for options in ({}, {"tighten": "diagonal"}, {"dtype": "float64"}):
        solution = solve(problem, **options, max_iterations=20)
        before = solution.relaxed_mask.clone()
        bounds = [[certify(problem, solution, method).lower_bound for method in METHODS[:2]] for _ in range(2)]
        assert bounds[0] == bounds[1]
        assert torch.equal(solution.relaxed_mask, before)
        solution.certificate.verify(problem)


@pytest.mark.parametrize("name", POLYTOPES)
def test_the_stored_proof_is_the_one_that_gave_the_bound(name):
    problem, _ = layer(name)
    for method in METHODS[:3]:
        certificate = certify(problem, solve(problem, max_iterations=15), method, max_iterations=10)
        again = tangent_bound(problem, certificate.proof, 2**20, flatten=False)
        assert torch.equal(
            torch.minimum(again.block_lower_bound, certificate.block_objective), certificate.block_lower_bound
        )


def test_a_solution_of_another_problem_is_a_hint_and_no_proof():
    draw = Draw(0)
    weight = draw.normal(3, 12)
    easy = MaskProblem(weight, torch.diag(draw.uniform(0.5, 1.5, 12)), KSparse(6))
    inputs = draw.normal(40, 12) + 2 * draw.normal(40, 2).repeat(1, 6)
    hard = MaskProblem(weight, inputs.T @ inputs / 40, KSparse(6))
    foreign = solve(easy, tighten="diagonal")
    best = solve(hard, "enumerate").objective
    for method in METHODS[:3]:
        certificate = certify(hard, foreign, method)
        assert certificate.lower_bound <= best
        certificate.verify(hard)


@pytest.mark.parametrize("method", METHODS)
def test_a_huge_entry_that_is_kept_does_not_hide_a_negative_optimum(method):
    gram = torch.eye(4, dtype=F64)
    gram[1, 2] = gram[2, 1] = -1.0004
    weight = torch.tensor([[1e9, 1.0, 1.0, 1.0]], dtype=F64)
    kept = torch.tensor([[True, False, False, False]])
    problem = MaskProblem(weight, gram, KSparse(2), fixed_kept=kept)
    best = torch.tensor([[True, False, False, True]])
    certificate = certify(problem, best, method)
    assert certificate.lower_bound <= float(exact_objective(weight, gram, best)) < 0
    certificate.verify(problem, exact=True)


def test_enumeration_allows_for_the_rounding_of_every_mask():
    """Two columns cancel: the best mask's own value is rounded far more than that of the mask that seems best."""
    wrong = 0
    for seed in range(20):
        draw = Draw(seed)
        a, b = (10 ** draw.uniform(-2, 2, 2)).tolist()
        size = float(10 ** draw.uniform(7, 8.5, 1))
        gram = torch.diag(torch.tensor([a * a, b * b, 1.0, 1.0], dtype=F64))
        gram[0, 1] = gram[1, 0] = -a * b
        weight = torch.tensor([[size / a, size / b, 0.7, 0.7]], dtype=F64)
        problem = MaskProblem(weight, gram, KSparse(2))
        rule = Rule.groups((1, 4), 2, 4, False)
        masks = [torch.from_numpy(mask[None]) for mask in rule.blocks[0].reshape(-1, 4)]
        best = min(exact_objective(weight, gram, mask) for mask in masks)
        for method in METHODS:
            bound = certify(problem, masks[0], method).lower_bound
            assert bound <= best, (seed, method)
        wrong += int(float(best) < problem.objective(solve(problem, "enumerate").mask))
    assert wrong, "the case must be hard for float64"
    assert best_mask(weight, gram, rule).shape == (1, 4)


def test_a_zero_objective_is_not_a_closed_gap_where_the_problem_goes_below():
    draw = Draw(3)
    problem = QuadraticProblem(correlated_gram(8, draw), -5 * draw.uniform(1, 2, 1, 8), KSparse(3, at_most=True))
    certificate = certify(problem, torch.zeros(1, 8, dtype=torch.bool), "sdp")
    assert certificate.objective == 0 and certificate.lower_bound < 0
    assert certificate.relative_gap == torch.inf
    assert certificate.rows_covered == 1, "its size is that of its terms, not of the objective"
    layer_problem = MaskProblem(torch.zeros(2, 4), torch.eye(4), KSparse(2))
    assert certify(layer_problem, solve(layer_problem).mask).relative_gap == 0


@pytest.mark.parametrize(("by_weight", "by_gram"), [(1e155, 1.0), (1e-160, 1.0), (1e-170, 1e200), (1.0, 1e300)])
def test_energies_beyond_float64_are_refused(by_weight, by_gram):
    draw = Draw(4)
    with pytest.raises(RelaxPruneError, match=r"energies w\^2 G_jj"):
        MaskProblem(by_weight * draw.normal(2, 6), by_gram * correlated_gram(6, draw), KSparse(3))


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_far_scales_are_certified(scale):
    for method in METHODS[:3]:
        problem, mask, near = proven(method)
        far = MaskProblem(problem.weight.double() * scale, problem.gram, problem.polytope)
        other = certify(far, mask, method)
        assert other.relative_gap == pytest.approx(near.relative_gap, abs=1e-3)
        other.verify(far)


def test_a_layer_of_one_row_is_a_row():
    draw = Draw(5)
    problem = MaskProblem(draw.normal(1, 12), correlated_gram(12, draw), KSparse(6, per="layer"))
    certificate = certify(problem, solve(problem).mask, "sdp")
    certificate.verify(problem, exact=True)
    assert certificate.rows_covered == 1


@pytest.mark.parametrize("at_most", [False, True])
def test_a_group_without_a_choice_leaves_the_others_their_proof(at_most):
    draw = Draw(6)
    weight, gram = draw.normal(2, 16), correlated_gram(16, draw)
    kept = torch.zeros(2, 16, dtype=torch.bool)
    kept[:, :2] = True
    rest = torch.zeros_like(kept)
    rest[:, 2:4] = True
    implied = MaskProblem(weight, gram, NM(2, 4, at_most), fixed_kept=kept)
    written = MaskProblem(weight, gram, NM(2, 4, at_most), fixed_kept=kept, fixed_pruned=rest)
    mask = solve(written).mask
    one, other = certify(implied, mask, "sdp"), certify(written, mask, "sdp")
    assert one.rows_covered == other.rows_covered == 2
    assert one.relative_gap == pytest.approx(other.relative_gap, abs=2e-3)
    one.verify(implied, exact=True)


@pytest.mark.parametrize("rows", [np.int64(2), torch.tensor(2), 2])
def test_a_number_of_rows_of_any_library(rows):
    problem, _ = layer("row")
    certificate = certify(problem, solve(problem), "sdp", rows=rows)
    assert certificate.rows_covered == 2 and certificate.estimate is not None
    assert certificate.lower_bound <= certificate.estimate.low <= certificate.estimate.lower_bound


def test_one_row_gives_an_estimate_that_can_be_written(tmp_path):
    problem, _ = layer("row")
    certificate = certify(problem, solve(problem), "sdp", rows=1)
    certificate.save(problem, tmp_path / "proof")
    loaded = load_certificate(tmp_path / "proof")
    assert loaded.estimate == certificate.estimate
    loaded.verify(problem)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lower_bound", "a"), ("lower_bound", None), ("objective", "x"), ("checks", []), ("rows_covered", 1.5),
        ("rows_covered", 999), ("method", "magic"), ("method", "diagonal"),
    ],
)  # fmt: skip
def test_a_file_whose_description_is_wrong_is_refused_in_a_sentence(name, value, tmp_path, capsys):
    problem, _, certificate = proven()
    layer_file, proof = tmp_path / "layer", tmp_path / "proof"
    save_file({"weight": problem.weight, "gram": problem.gram}, layer_file)
    certificate.save(problem, proof)
    with safe_open(proof, framework="pt") as file:
        metadata = dict(file.metadata())
    description = {**json.loads(metadata["description"]), name: value}
    write_container(proof, FORMAT, load_file(proof), {"description": json.dumps(description)})
    assert main(["verify", str(layer_file), str(proof)]) in (2, 3)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["dense_rows", "cut_row", "cut_index", "row_method"])
def test_indices_that_are_no_whole_numbers_are_refused(name):
    problem, _, certificate = proven()
    proof = replace(certificate.proof, **{name: getattr(certificate.proof, name).double()})
    with pytest.raises(CertificateError, match=f"{name} must hold whole numbers"):
        replace(certificate, proof=proof).verify(problem)


def test_a_budget_that_one_row_exceeds_is_refused_with_what_it_takes():
    problem, _ = layer("row")
    mask = solve(problem).mask
    with pytest.raises(RelaxPruneError, match="is 1000, but method 'sdp' takes 130000 for a row of 24 columns"):
        certify(problem, mask, "sdp", memory_budget_bytes=1000)
    assert certify(problem, mask, "sdp", memory_budget_bytes=130000).rows_covered == 6


def test_a_certificate_can_be_a_key():
    problem, _ = layer("row")
    certificate = certify(problem, solve(problem).mask)
    assert {certificate: 1}[certificate] == 1
