"""Certificates of objectives with several parts: valid bounds, independent verification, and lies that it refuses."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from relaxprune import CertificateError, KSparse, MaskProblem, Objective, RelaxPruneError, certify, solve
from relaxprune.certificates import load_certificate
from relaxprune.cli import main
from relaxprune.runs import LayerProblem, write_problem_file
from tests.conftest import LONG
from tests.solvers.conformance.objectives import PARTS, with_parts


@pytest.mark.parametrize("parts", PARTS if LONG else ("everything", "all and outputs"))
def test_every_method_proves_no_more_than_the_best_mask(parts: str, seed: int) -> None:
    case = with_parts(parts, "row", seed)
    best, margin, solution = float(case.best.sum()), case.margin, solve(case.problem, "swap")
    for method in ("fw", "exact") if "outputs" in parts else ("fw", "diagonal", "sdp", "exact"):
        certificate = certify(case.problem, solution, method)
        assert certificate.lower_bound <= best + margin, f"{case.label}: {method}"
        seen = certificate.verify(case.problem)
        assert seen.lower_bound >= certificate.lower_bound
        if method == "exact":
            assert certificate.lower_bound >= best - 1e-9 * abs(best) - margin
        certificate.verify(case.problem, exact=True)


@pytest.mark.parametrize("parts", PARTS)
def test_a_raised_bound_is_refused(parts: str, seed: int) -> None:
    problem = with_parts(parts, "row", seed + 1).problem
    certificate = certify(problem, solve(problem, "wanda"), "fw")
    more = 1e-6 * float(problem.diagonal.sum())
    block = certificate.block_lower_bound + more
    raised = replace(
        certificate,
        block_lower_bound=block,
        lower_bound=float(block.sum()),
        block_objective=certificate.block_objective,
    )
    with pytest.raises(CertificateError):
        raised.verify(problem)


def changed(objective: Objective, name: str) -> Objective:
    """Return the objective with another number in one part."""
    own = {key: value.clone() for key, value in objective.own_tensors().items()}
    grams: list[Tensor] = [gram.matrix.clone() for gram in objective.grams]
    if name == "gram":
        grams[-1] *= 0.5
    elif name == "row_groups":
        own[name] = 1 - own[name]
    else:
        own[name] *= 0.5
    return Objective(grams if len(grams) > 1 else grams[0], **own)


@pytest.mark.parametrize(
    ("parts", "names"), [("everything", ("gram", "row_groups", "fisher", "linear")), ("outputs", ("outputs", "gram"))]
)
def test_a_certificate_is_for_one_objective(parts: str, names: tuple[str, ...], seed: int, tmp_path: Path) -> None:
    problem = with_parts(parts, "row", seed + 2).problem
    solve(problem).certificate.save(problem, tmp_path / "proof")
    stored = load_certificate(tmp_path / "proof")
    stored.verify(problem)
    for name in names:
        other = MaskProblem(problem.weight, changed(problem.minimised, name), problem.polytope)
        with pytest.raises(CertificateError, match="for another"):
            stored.verify(other)


def test_methods_that_look_at_one_row_are_refused_for_coupled_rows() -> None:
    problem = MaskProblem(torch.ones(3, 4), Objective(torch.eye(4), outputs=torch.eye(3)), KSparse(2))
    solution = solve(problem)
    for method in ("diagonal", "sdp"):
        with pytest.raises(RelaxPruneError, match=f"method '{method}' looks at one row at a time"):
            certify(problem, solution, method)
        assert solution.certificate.verify(problem).method == "fw"
    method = torch.ones(3, dtype=torch.int8)
    proof = replace(solution.certificate.proof, row_method=method, tightening=torch.ones(4).double())
    lie = replace(solution.certificate, method="diagonal", proof=proof)
    with pytest.raises(CertificateError, match="rows are coupled"):
        lie.verify(problem)


def test_a_linear_term_too_small_for_float64_leaves_room_below_zero() -> None:
    weight, linear = (torch.full((1, 2), size, dtype=torch.float64) for size in (1e-130, 1e-200))
    problem = MaskProblem(weight, Objective(torch.zeros(2, 2).double(), linear=linear), KSparse(1))
    certificate = solve(problem).certificate
    best = -Fraction(1e-130) * Fraction(1e-200)  # exactly; float64 has 0
    assert Fraction(certificate.lower_bound) <= best and certificate.verify(problem).lower_bound <= best
    none = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(CertificateError):
        replace(certificate, block_objective=none, block_lower_bound=none, lower_bound=0.0).verify(problem)


def test_from_files_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for parts in ("everything", "all and outputs"):
        problem = with_parts(parts, "row", 4).problem
        grams = [gram.matrix for gram in problem.minimised.grams]
        gram = torch.stack(grams) if len(grams) > 1 else grams[0]
        tensors = {"weight": problem.weight, "gram": gram, **problem.minimised.own_tensors()}
        file, proof = tmp_path / "layer.safetensors", tmp_path / f"proof of {parts}"
        write_problem_file(file, LayerProblem(**tensors))
        assert main(["solve", str(file), "--sparsity", "0.5", "--certificate", str(proof)]) == 0
        assert main(["verify", str(file), str(proof)]) == 0
        assert "lower_bound" in capsys.readouterr().out
        assert main(["solve", str(file), "--sparsity", "0.5", "--refit"]) == 2
        assert "weights that move need one Gram" in capsys.readouterr().err
