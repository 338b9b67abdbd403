"""Hybrid sets solved: the choice of dense rows is the best one, its bound holds, and liars prove nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from relaxprune import (
    NM,
    CertificateError,
    Hybrid,
    MaskProblem,
    QuadraticProblem,
    ReconstructionProblem,
    RelaxPruneError,
    certify,
    certify_weights,
    load_certificate,
    read_masks,
    solve,
)
from relaxprune.certificates.choice_certificate import ChoiceCertificate
from relaxprune.cli import main
from relaxprune.options import PruneOptions
from relaxprune.pruning import prune_model
from tests.enumeration import HybridRule, best_values, objective
from tests.layers import correlated_gram
from tests.random_problems import Draw

from ..tiny_models import padded_batches, tiny_model

METHODS = ("fw", "diagonal", "sdp", "exact")


def layer(one: Hybrid, shape: tuple[int, int], seed: int = 0, **fixed: Tensor) -> MaskProblem:
    draw = Draw(seed)
    weight = draw.normal(*shape) * torch.linspace(0.5, 2, shape[0]).unsqueeze(1)
    return MaskProblem(weight, correlated_gram(shape[1], draw), one, **fixed)


def optimum(problem: MaskProblem) -> float:
    """The least objective of any mask, from all of them."""
    one = problem.polytope
    rule = HybridRule.of(problem.shape, one.keep, one.group, one.dense, one.tile)
    return float(best_values(problem.weight, problem.gram, rule)[0])


@pytest.mark.parametrize(("one", "shape"), [(Hybrid(1, 2, 1), (3, 4)), (Hybrid(1, 3, 1, tile=2), (4, 3))], ids=repr)
def test_best_masks_of_rows_give_the_best_mask(one, shape, seed):
    problem = layer(one, shape, seed)
    solution = solve(problem, "enumerate")
    assert solution.objective == pytest.approx(optimum(problem)) and solution.status.name == "OPTIMAL"
    assert solution.objective == pytest.approx(objective(problem.weight, problem.gram, solution.mask))
    assert certify(problem, solution, "exact").lower_bound == pytest.approx(solution.objective)


def test_no_other_choice_of_rows_is_better():
    one = Hybrid(2, 4, 2)
    problem = layer(one, (6, 16))
    solution, rows = solve(problem), solve(problem.over(NM(2, 4)))
    others = []
    for dense in itertools.combinations(range(6), 2):
        mask = rows.mask.clone()
        mask[list(dense)] = True
        others.append(problem.objective(mask))
    assert solution.objective == pytest.approx(min(others)) and one.contains(solution.mask)
    # A relaxation of the hull, in which every row is a little dense, proves less.
    point = rows.mask.double() + (1 - rows.mask.double()) / 3
    half = problem.half_gradient(point)
    tangent = problem.objective(point) + 2 * float((half * (one.lmo(half) - point)).sum())
    assert solution.lower_bound > tangent


@pytest.mark.parametrize("kind", [MaskProblem, QuadraticProblem])
@pytest.mark.parametrize("method", METHODS)
def test_bounds_hold_verify_and_come_back_from_a_file(kind, method, tmp_path, seed):
    problem = layer(Hybrid(1, 2, 1), (3, 4), seed)
    value = optimum(problem)
    if kind is QuadraticProblem:  # the same objective, less what all rows have in common
        wide = problem.weight.double()
        energy = wide.unsqueeze(1) * problem.gram.double() * wide.unsqueeze(2)
        value = None
        problem = QuadraticProblem(problem.gram, -2 * energy.sum(dim=2), problem.polytope)
    mask = problem.polytope.round(Draw(seed).normal(3, 4))
    certificate = certify(problem, mask, method)
    masks = torch.from_numpy(HybridRule.of((3, 4), 1, 2, 1, 1).blocks[0])
    value = min(problem.objective(one) for one in masks) if value is None else value
    assert certificate.lower_bound <= value + 1e-9 * abs(value)
    assert method != "exact" or certificate.lower_bound == pytest.approx(value)
    for exact in (False, True):
        assert certificate.verify(problem, exact=exact).lower_bound <= value + 1e-9 * abs(value)
    certificate.save(problem, tmp_path / "proof.safetensors")
    read = load_certificate(tmp_path / "proof.safetensors")
    assert isinstance(read, ChoiceCertificate) and read.lower_bound == certificate.lower_bound
    assert torch.equal(read.mask, mask) and torch.equal(read.apart.mask, certificate.apart.mask)
    read.verify(problem)


def test_liars_prove_nothing(seed):
    problem = layer(Hybrid(1, 2, 1), (3, 4), seed)
    mask = problem.polytope.round(-solve(problem).mask.double())  # a bad one: its own objective refuses nothing
    honest = certify(problem, mask, "exact")
    more = torch.tensor([optimum(problem) * (1 + 1e-9)], dtype=torch.float64)
    above = {"lower_bound": float(more), "block_lower_bound": more}
    apart = honest.apart
    raised = replace(apart, block_lower_bound=apart.block_lower_bound * 2, lower_bound=apart.lower_bound * 2)
    flipped = honest.mask.clone()
    flipped[0, 0] ^= True
    other = layer(Hybrid(1, 2, 2), (3, 4), seed)
    forged = {
        "a bound above the choice": (replace(honest, **above), problem),
        "row bounds above their rows": (replace(honest, **above, apart=raised), problem),
        "a mask outside the set": (replace(honest, mask=flipped), problem),
        "more dense rows": (honest, other),
        "rows of another mask": (replace(honest, apart=replace(apart, mask=~apart.mask)), problem),
        "an objective too low": (replace(honest, objective=honest.objective / 2), problem),
        "another set": (honest, problem.over(NM(1, 2))),
    }
    honest.verify(problem)
    for what, (certificate, given) in forged.items():
        for exact in (False, True):
            with pytest.raises(CertificateError):
                certificate.verify(given, exact=exact)
                pytest.fail(f"accepted: {what}")


def test_no_disturbed_proof_of_rows_is_accepted_above_the_optimum(seed, long_run):
    problem = layer(Hybrid(1, 2, 1), (3, 4), seed)
    mask = problem.polytope.round(-solve(problem).mask.double())
    certificates = [certify(problem, mask, method, max_iterations=3) for method in METHODS]
    best = optimum(problem) * (1 + 1e-9)
    rows = torch.minimum(certificates[-1].apart.block_lower_bound * (1 + 1e-8), certificates[0].apart.block_objective)
    names = ("point", "scale", "tightening", "dense_diagonal", "dense_weight", "cut_multiplier")
    draw = Draw(seed)
    for number in range(2000 if long_run else 60):
        honest = certificates[number % len(certificates)]
        floats = {name: getattr(honest.apart.proof, name) for name in names}
        name = draw.pick(tuple(name for name, value in floats.items() if value is not None and value.numel()))
        value = floats[name].double()
        size = 10 ** draw.uniform(-12, 30)
        moved = torch.where(draw.bits(0.4, *value.shape), value + size * draw.normal(*value.shape), value)
        apart = replace(
            honest.apart,
            proof=replace(honest.apart.proof, **{name: moved}),
            block_lower_bound=rows,
            lower_bound=float(rows.sum()) * (1 - 1e-12),
        )
        claim = torch.tensor([best], dtype=torch.float64)
        with pytest.raises(CertificateError):
            replace(honest, apart=apart, lower_bound=best, block_lower_bound=claim).verify(problem)


def test_fixed_entries_decide_which_rows_may_be_dense():
    kept, pruned = torch.zeros(2, 4, 4, dtype=torch.bool)
    kept[3] = True  # more than 1:2 allows: dense
    pruned[0, 1] = True  # never dense, though the heaviest
    problem = layer(Hybrid(1, 2, 2), (4, 4), 5, fixed_kept=kept, fixed_pruned=pruned)
    for solver in ("fw", "enumerate", "wanda"):
        solution = solve(problem, solver)
        dense = solution.mask.all(dim=1)
        assert bool(dense[3]) and not bool(dense[0]) and int(dense.sum()) == 2 and not solution.mask[0, 1]
        solution.certificate.verify(problem)
        solution.certificate.verify(problem, exact=True)


def test_it_starts_from_a_hybrid_mask_and_refuses_others():
    one = Hybrid(2, 4, 1)
    problem = layer(one, (4, 8))
    start = solve(problem, "wanda").mask
    assert solve(problem, "swap", start=start).objective <= problem.objective(start)
    with pytest.raises(RelaxPruneError, match="start must lie in Hybrid"):
        solve(problem, "swap", start=NM(2, 4).round(torch.ones(4, 8)))


@pytest.mark.parametrize("solver", ["reconstruct", "sparsegpt", "alps"])
def test_dense_rows_get_their_target_where_weights_move(solver):
    draw = Draw(1)
    weight, dense = draw.normal(6, 8), draw.normal(60, 8) @ draw.normal(8, 8)
    read = dense + 0.3 * draw.normal(60, 8)
    moments = {"cross": dense.T @ read / 60, "dense_gram": dense.T @ dense / 60}
    problem = ReconstructionProblem(weight, read.T @ read / 60, Hybrid(2, 4, 2, tile=2), damping=0.01, **moments)
    solution = solve(problem, solver)
    whole = solution.mask.all(dim=1)
    assert problem.polytope.contains(solution.mask) and int(whole.sum()) == 4
    assert torch.equal(solution.weight[whole], problem.target[whole].to(weight.dtype))
    assert not solution.weight[~solution.mask].any()
    apart = solve(problem.within(NM(2, 4)), solver)
    saved = (apart.block_objective - problem.residual).view(3, 2).sum(dim=1)
    assert solution.objective == pytest.approx(apart.objective - float(saved.topk(2).values.sum()))
    assert solution.lower_bound <= solution.objective
    solution.certificate.verify(problem)
    certify_weights(problem, solution.weight).verify(problem)


def test_the_command_line_solves_proves_and_verifies(tmp_path: Path, capsys):
    problem = layer(Hybrid(2, 4, 2), (8, 16))
    file, proof, out = (tmp_path / name for name in ("layer.safetensors", "proof.safetensors", "masks.safetensors"))
    save_file({"weight": problem.weight.float(), "gram": problem.gram.float()}, file)
    words = ["solve", str(file), "--pattern", "2:4,dense=0.25", "--certify", "diagonal"]
    assert main([*words, "--out", str(out), "--certificate", str(proof)]) == 0
    assert Hybrid(2, 4, 2).contains(read_masks(out)["weight"])
    assert main(["verify", str(file), str(proof)]) == 0
    assert "Hybrid(keep=2, group=4, dense=2, tile=1)" in capsys.readouterr().out
    assert main(["solve", str(file), "--pattern", "2:4,dense=2"]) == 2
    assert "must be a share from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["keep", "refit"])
def test_a_whole_model(weights):
    options = PruneOptions(max_iterations=12, weights=weights, certify="fw" if weights == "keep" else None)
    report = prune_model(tiny_model("llama"), padded_batches(2), pattern="2:4,dense=0.5", options=options)
    assert report.masks
    for mask in report.masks.values():
        assert Hybrid(2, 4, len(mask) // 2).contains(mask)
    assert all(one.bound.lower_bound <= one.loss.objective <= one.loss.wanda_objective for one in report.layers)
