"""What a certificate must look like to be judged at all, and that honest ones of real sizes are not refused by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

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
    TransposableNM,
    certify,
    certify_weights,
    load_certificate,
    solve,
)
from relaxprune.certificates.verify.claim_file import FORMAT
from relaxprune.cli import main
from relaxprune.support.container import TensorFormat, write_container
from tests.layers import correlated_gram
from tests.random_problems import Draw, make_gram

from . import forging, forging_targets

F64 = torch.float64
FIRST = TensorFormat(FORMAT.kind, FORMAT.name, version=1, sealed=False)


@cache
def proven() -> tuple[MaskProblem, MaskCertificate]:
    draw = Draw(0)
    problem = MaskProblem(draw.normal(4, 8), correlated_gram(8, draw), KSparse(4))
    return problem, certify(problem, solve(problem, "wanda").mask, "sdp")


TENSORS: dict[str, Callable[[torch.Tensor], object]] = {
    "float32": lambda tensor: tensor.float(),
    "whole": lambda tensor: tensor.round().long(),
    "unsigned": lambda tensor: tensor.to(torch.uint64),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "no dimension": lambda tensor: tensor.sum(),
    "negative view": lambda tensor: torch.complex(tensor, tensor).conj().imag,
    "none": lambda tensor: None,
    "list": lambda tensor: tensor.tolist(),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("name", ["block_lower_bound", "dense_diagonal", "cut_multiplier", "dense_rows", "cut_row"])
def test_tensors_of_other_kinds_are_refused(kind, name):
    problem, certificate = proven()
    parts = forging.parts_of(certificate)
    if kind == "whole" and not parts[name].is_floating_point():
        kind = "float32"
    forged = forging.assembled(certificate, {**parts, name: TENSORS[kind](parts[name].double())})
    with pytest.raises(CertificateError, match=name):
        forged.verify(problem)


@pytest.mark.parametrize("value", ["1", None, True, float("nan"), float("inf"), 10**400, Fraction(1, 3), [1.0]])
@pytest.mark.parametrize("name", ["objective", "lower_bound", "shift", "rows_covered"])
def test_numbers_that_are_none_are_refused(name, value):
    problem, certificate = proven()
    forged = forging.assembled(certificate, {**forging.parts_of(certificate), name: value})
    with pytest.raises(CertificateError, match=name.removesuffix("_covered")):
        forged.verify(problem)


def test_a_number_that_compares_as_it_likes_is_refused():
    class Sly(float):
        def __gt__(self, other: object) -> bool:
            return False

    problem, certificate = proven()
    with pytest.raises(CertificateError, match="lower_bound must be a finite number"):
        replace(certificate, lower_bound=Sly(1e9)).verify(problem)


def test_a_bound_of_whole_numbers_cannot_hide_behind_the_rounding_to_float64():
    problem = MaskProblem(torch.tensor([[2.0**27, 2.0**26]], dtype=F64), torch.eye(2, dtype=F64), KSparse(1))
    certificate = certify(problem, torch.tensor([[False, True]]), "exact")
    bound = torch.tensor([2**52 + 1])  # the optimum is 2^52
    with pytest.raises(CertificateError, match=r"must hold torch\.float64"):
        replace(certificate, block_lower_bound=bound).verify(problem)


@pytest.mark.parametrize("count", [1, 1000, 5000])
def test_the_rounding_of_many_cuts_is_taken_off(count):
    """Many small multipliers add up with an error that grows with their number."""
    problem, certificate = proven()
    rows, cols = problem.shape
    share = 10.0 * problem.diagonal.mean() / count / 3
    forged = forging.parts_of(certificate) | {
        "row_method": torch.full((rows,), 2, dtype=torch.int8),
        "dense_rows": torch.arange(rows),
        "dense_diagonal": -45 * problem.diagonal.mean() * torch.ones(rows, cols, dtype=F64),
        "dense_weight": torch.zeros(rows, dtype=F64),
        "cut_row": torch.zeros(count, dtype=torch.int64),
        "cut_index": torch.tensor([1, 2, 3]).expand(count, 3),
        "cut_sign": torch.ones(count, 3, dtype=torch.int8),
        "cut_multiplier": torch.full((count,), float(share), dtype=F64),
        "block_lower_bound": torch.full((rows,), -1e9, dtype=F64),
        "lower_bound": -1e10,
    }
    honest = forging.assembled(certificate, forged)
    rough, exact = honest.verify(problem), honest.verify(problem, exact=True)
    assert rough.lower_bound <= exact.lower_bound
    assert rough.smallest_eigenvalue == pytest.approx(exact.smallest_eigenvalue, abs=1e-9)


def test_rationals_are_not_rounded_on_the_way():
    """A bound that is a last digit above the optimum is none, where every other digit is tight."""
    for name in ("face / row / singular", "mask / row at most / dead", "quadratic / nm at most / diagonal"):
        target = forging_targets.target(name)
        for certificate in target.certificates:
            assert target.excess(certificate, certificate.verify(target.problem, exact=True).lower_bound) <= 0


def test_an_input_that_never_fires_costs_nothing_in_the_exact_bound_of_weights():
    target = forging_targets.target("weights / row / dead")
    certificate = target.certificates[-1]
    assert certificate.method == "exact"
    assert all(
        0 <= best - Fraction(bound) <= Fraction(1, 10**7)
        for best, bound in zip(target.optimum, certificate.block_lower_bound.tolist(), strict=True)
    )


@pytest.mark.parametrize("size", [1e-160, 1e-150, 1e-320])
def test_numbers_too_small_for_the_precision_of_float64_prove_nothing(size):
    draw = Draw(1)
    gram = correlated_gram(4, draw) * size
    problem = QuadraticProblem((gram + gram.T) / 2, size * draw.normal(2, 4), KSparse(2))
    answer = problem.polytope.round(draw.normal(2, 4))
    values = [forging_targets._quadratic_values(problem, row) for row in range(2)]
    best = [min(value for kept, value in row.items() if sum(kept) == 2) for row in values]
    certificate = certify(problem, answer)
    parts = forging.parts_of(certificate)
    for tries in range(40):
        parts["point"] = parts["point"].double() + 10 ** draw.uniform(-20, -1) * draw.normal(2, 4)
        low = {"block_lower_bound": torch.full((2,), -1.0, dtype=F64), "lower_bound": -2.0}
        forged = forging.assembled(certificate, parts | low)
        try:
            assert Fraction(forged.verify(problem).lower_bound) <= sum(best), tries
        except CertificateError:
            continue


def test_a_gram_that_changes_after_it_was_checked_is_refused():
    draw = Draw(2)
    gram = correlated_gram(8, draw)
    gram = (gram + gram.T) / 2
    problem = MaskProblem(draw.normal(2, 8), gram, KSparse(4))
    certificate = certify(problem, solve(problem, "wanda").mask)
    gram[0, 1] += 1
    with pytest.raises(RelaxPruneError, match="changed in place"):
        certificate.verify(problem)


def test_an_exact_proof_of_too_many_masks_is_refused_before_they_are_made(tmp_path, capsys):
    draw = Draw(3)
    weight, gram = draw.normal(300, 300), torch.eye(300, dtype=F64)
    problem = MaskProblem(weight, gram, KSparse(1, per="layer"))
    honest = certify(problem, solve(problem, "wanda").mask)
    exact = torch.full_like(honest.proof.row_method, 3)
    replace(honest, method="exact", proof=replace(honest.proof, row_method=exact)).save(problem, tmp_path / "proof")
    save_file({"weight": weight, "gram": gram}, tmp_path / "layer")
    assert main(["verify", str(tmp_path / "layer"), str(tmp_path / "proof")]) == 3
    assert "there are more" in capsys.readouterr().err


def file_of(folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None], first: bool) -> list[str]:
    """The words of a command that verifies a file with another description or other tensors."""
    problem, certificate = proven()
    save_file({"weight": problem.weight, "gram": problem.gram}, folder / "layer")
    certificate.save(problem, folder / "proof")
    with safe_open(folder / "proof", framework="pt") as file:
        description = json.loads(file.metadata()["description"])
    tensors = load_file(folder / "proof")
    if first:
        description["polytope"] = description.pop("subject")["polytope"]
        del description["kind"]
        tensors = {forging.FIRST_NAMES.get(name, name): tensor for name, tensor in tensors.items()}
    change(description, tensors)
    write_container(folder / "proof", FIRST if first else FORMAT, tensors, {"description": json.dumps(description)})
    return ["verify", str(folder / "layer"), str(folder / "proof")]


def _set(description: dict[str, Any]) -> Any:
    return description.get("subject", description)


STRANGE: dict[str, tuple[int, Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]]] = {
    "unknown entry": (2, lambda about, _: about.update(more=1)),
    "nothing": (2, lambda about, _: about.clear()),
    "method is a list": (2, lambda about, _: about.update(method=[])),
    "objective is a word": (2, lambda about, _: about.update(objective="1")),
    "checks without shift": (2, lambda about, _: about.update(checks={})),
    "shift is a list": (3, lambda about, _: about.update(checks={"shift": []})),
    "set is a word": (2, lambda about, _: _set(about).update(polytope="row")),
    "set is a list": (2, lambda about, _: _set(about).update(polytope=[1, 2])),
    "kind of set is a list": (2, lambda about, _: _set(about).update(polytope={"kind": []})),
    "set is a face": (3, lambda about, _: _set(about).update(polytope={"kind": "face"})),
    "set with an unknown option": (2, lambda about, _: _set(about)["polytope"].update(base="row")),
    "set keeps a share": (2, lambda about, _: _set(about)["polytope"].update(keep=0.5)),
    "set keeps more than there are": (3, lambda about, _: _set(about)["polytope"].update(keep=2**40)),
    "set keeps less than nothing": (3, lambda about, _: _set(about)["polytope"].update(keep=-1)),
    "set says yes": (2, lambda about, _: _set(about)["polytope"].update(at_most="no")),
    "groups of nothing": (3, lambda about, _: _set(about).update(polytope={"kind": "nm", "keep": 0, "group": 0})),
    "groups that do not fit": (3, lambda about, _: _set(about).update(polytope={"kind": "nm", "keep": 1, "group": 3})),
    "mask of twos": (2, lambda _, tensors: tensors["mask"].mul_(2)),
    "mask of floats": (2, lambda _, tensors: tensors.update(mask=tensors["mask"].float())),
    "another's fixed entries": (3, lambda _, tensors: tensors.update(fixed_kept=torch.ones(2, 2, dtype=torch.uint8))),
    "everything fixed": (3, lambda _, tensors: tensors.update(fixed_pruned=torch.ones(4, 8, dtype=torch.uint8))),
    "rows without dimension": (3, lambda _, tensors: tensors.update(dense_rows=torch.tensor(0))),
    "unsigned rows": (3, lambda _, tensors: tensors.update(dense_rows=torch.zeros(1, dtype=torch.uint64))),
    "one tensor less": (2, lambda _, tensors: tensors.pop("scale")),
    "one tensor more": (2, lambda _, tensors: tensors.update(more=torch.zeros(1))),
}


@pytest.mark.parametrize("first", [False, True], ids=["version 2", "version 1"])
@pytest.mark.parametrize("name", STRANGE)
def test_strange_files_are_refused_in_one_line(name, first, tmp_path, capsys):
    code, change = STRANGE[name]
    assert main(file_of(tmp_path, change, first)) == code
    assert capsys.readouterr().err.count("\n") == 1


OF_ONE_VERSION: dict[str, tuple[bool, Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]]] = {
    "no hashes": (False, lambda about, _: about["subject"].update(sha256={})),
    "hashes are a list": (False, lambda about, _: about["subject"].update(sha256=[])),
    "a hash is a number": (False, lambda about, _: about["subject"]["sha256"].update(gram=1)),
    "damping of masks": (False, lambda about, _: about["subject"].update(damping=0.1)),
    "more in the subject": (False, lambda about, _: about["subject"].update(more=1)),
    "kind is a list": (False, lambda about, _: about.update(kind=[])),
    "of weights": (False, lambda about, _: about.update(kind="weights")),
    "kind in version 1": (True, lambda about, _: about.update(kind="mask")),
    "both names of a tensor": (True, lambda _, tensors: tensors.update(tightening=torch.zeros(8, dtype=F64))),
}


@pytest.mark.parametrize("name", OF_ONE_VERSION)
def test_what_one_version_cannot_have_is_refused(name, tmp_path, capsys):
    first, change = OF_ONE_VERSION[name]
    assert main(file_of(tmp_path, change, first)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_hash_of_another_name_or_value_is_refused(tmp_path, capsys):
    def only_gram(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        about["subject"]["sha256"] = {"gram": "0"}

    def all_wrong(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        about["subject"]["sha256"] = dict.fromkeys(about["subject"]["sha256"], "0")

    for change in (only_gram, all_wrong):
        assert main(file_of(tmp_path, change, False)) == 3
        assert "does not hold" in capsys.readouterr().err


def _sizes(long: bool) -> list[tuple[int, str]]:
    return [(64, "gaussian"), (200, "low rank")] if not long else [
        (cols, kind) for cols in (64, 200, 600) for kind in ("gaussian", "low rank", "scaled", "dead", "float32 noise")
    ]  # fmt: skip


def test_honest_certificates_of_real_sizes_hold(seed, long_run, tmp_path):
    """Grams of full and low rank, far scales, bfloat16, and every set: what no rationals come to the help of."""
    sets = (NM(2, 4), KSparse(30, at_most=True), KSparse(90, per="layer"), TransposableNM(2, 4), KSparse(31))
    for place, (cols, kind) in enumerate(_sizes(long_run)):
        draw = Draw(seed + place)
        polytope, gram = sets[(place + seed) % len(sets)], make_gram(kind, cols, draw)
        for weight in (
            draw.normal(4, cols).to(torch.bfloat16),
            1e-30 * draw.normal(4, cols),
            1e30 * draw.normal(4, cols),
        ):
            problem = MaskProblem(weight, gram, polytope)
            solution = solve(problem, max_iterations=20)
            for method in ("fw", "diagonal", "sdp") if cols < 600 else ("fw", "diagonal"):
                rows = 1 if method == "sdp" else None
                certificate = certify(problem, solution, method, rows=rows, max_iterations=20)
                assert certificate.verify(problem).lower_bound >= certificate.lower_bound
            certificate.save(problem, tmp_path / "proof")
            load_certificate(tmp_path / "proof").verify(problem)


@pytest.mark.parametrize("joint", [False, True])
def test_honest_certificates_of_weights_of_real_sizes_hold(joint, seed, long_run):
    for cols in (64, 200, 600) if long_run else (128,):
        for damping, scale in ((1e-2, 1.0), (1e-6, 1e15), (1e-4, 1e-15)):
            draw = Draw(seed + cols)
            dense = scale * (draw.normal(cols // 2, cols) + draw.normal(cols // 2, 3) @ draw.normal(3, cols))
            pruned = dense + 0.1 * scale * draw.normal(cols // 2, cols) if joint else dense
            moments = {"cross": dense.T @ pruned, "dense_gram": dense.T @ dense} if joint else {}
            problem = ReconstructionProblem(
                draw.normal(4, cols), pruned.T @ pruned, NM(2, 4), damping=damping, **moments
            )
            answer = solve(problem, max_iterations=5)
            assert certify_weights(problem, answer.weight).verify(problem).lower_bound > 0
