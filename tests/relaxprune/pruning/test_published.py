"""What a solver's name means: methods that are known for their weights move them, and count as they were published."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from relaxprune import KSparse, MaskProblem, ReconstructionProblem, plan_model, prune_model, solve
from relaxprune.cli import main
from relaxprune.options import Allocation, PruneOptions, StatisticsOptions, Target
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning import PruneRequest
from relaxprune.runs import read_masks
from relaxprune.runs.mask_file import read_mask_file
from relaxprune.solvers import make_solver, solver_class, solver_names
from tests.random_problems import Draw

from ..command_line import arguments, interrupt, only_sentence
from ..tiny_models import padded_batches, tiny_model

PUBLISHED = [name for name in solver_names() if solver_class(name).published.weights == "refit"]
PLAIN = [name for name in solver_names() if solver_class(name).published.plain]
OVER_LAYERS = ["alps", "sparsegpt"]
KEEP = PruneOptions(weights="keep")


def test_which_methods_are_known_for_more_than_masks() -> None:
    assert PUBLISHED == ["reconstruct", "alps", "sparsegpt", "obs-swap"]
    assert set(PLAIN) == {"sparsefw", "alps", "sparsegpt", "magnitude", "wanda", "ria"}
    assert [name for name in PUBLISHED if solver_class(name).published.allocation == "layer"] == OVER_LAYERS
    for name in solver_names():  # who brings weights, or lowers the error after refitting, must say so
        kind = solver_class(name)
        assert name in PUBLISHED or not (kind.own_weights or kind.needs_moving_weights)


@pytest.mark.parametrize("solver", ["fw", "swap", *PUBLISHED, *PLAIN])
def test_grams_shrink_unless_a_method_was_published_without(solver: str) -> None:
    target = Target(sparsity=0.5)
    share = 0.0 if solver in PLAIN else 0.1 if solver in PUBLISHED else 0.2
    assert PruneRequest.of(target, solver).options.statistics.shrinkage == share
    asked = PruneOptions(statistics=StatisticsOptions(shrinkage=0.3))
    assert PruneRequest.of(target, solver, asked).options.statistics.shrinkage == 0.3


@pytest.mark.parametrize("amount", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=str)
@pytest.mark.parametrize("solver", PUBLISHED)
def test_the_name_alone_moves_weights_and_counts_as_published(solver: str, amount: dict[str, str | float]) -> None:
    dense = tiny_model("llama")
    model, batches = copy.deepcopy(dense), padded_batches()
    report = prune_model(model, batches, solver=solver, **amount)
    assert report.options["weights"] == "refit" and not report.left_out
    assert report.options["damping"] == (0.01 if solver in OVER_LAYERS else 0.03)
    counted = solver in OVER_LAYERS and "sparsity" in amount
    assert report.polytope == {**amount, **({"allocation": "layer"} if counted else {})}
    for name, mask in report.masks.items():
        before, after = dense.get_parameter(name).detach(), model.get_parameter(name).detach()
        assert bool((before != after)[mask].any()) and not bool(after[~mask].any())
        assert int(mask.sum()) == mask.numel() // 2
        assert bool((mask.sum(dim=1) == mask.shape[1] // 2).all()) or counted
    if counted:
        assert any(len(mask.sum(dim=1).unique()) > 1 for mask in report.masks.values())
    spelt = copy.deepcopy(dense)
    options = PruneOptions(weights="refit", damping=report.options["damping"])
    counts = {"allocation": "layer" if counted else "uniform"} if "sparsity" in amount else {}
    prune_model(spelt, batches, solver=solver, options=options, **counts, **amount)
    assert all(torch.equal(tensor, spelt.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("solver", PUBLISHED)
def test_the_mask_alone_for_those_who_ask(solver: str) -> None:
    dense = tiny_model("llama")
    model = copy.deepcopy(dense)
    report = prune_model(model, padded_batches(), solver=solver, sparsity=0.5, options=KEEP, allocation="uniform")
    assert "new values for the kept weights (--refit)" in report.left_out
    assert len(report.left_out) == (2 if solver in OVER_LAYERS else 1)
    assert report.options["weights"] == "keep" and report.options["damping"] is None
    for name, mask in report.masks.items():
        assert torch.equal(model.get_parameter(name), dense.get_parameter(name).masked_fill(~mask, 0.0))
        assert bool((mask.sum(dim=1) == mask.shape[1] // 2).all())


def test_other_solvers_keep_weights_and_count_rows() -> None:
    report = prune_model(tiny_model("llama"), padded_batches(), solver="wanda", sparsity=0.5)
    assert report.options["weights"] == "keep" and report.polytope == {"sparsity": 0.5} and not report.left_out


def test_what_is_asked_for_wins() -> None:
    def of(solver: str, target: Target, **asked: object) -> PruneRequest:
        return PruneRequest.of(target, solver, PruneOptions(**asked))

    half = Target(sparsity=0.5)
    assert of("alps", half, weights="refit", damping=0.2).options.damping == 0.2
    assert of("fw", half, weights="refit").options.damping == 0.03
    owl = of("alps", Target(sparsity=0.5, allocation=Allocation("owl")))
    assert owl.target.sharing.kind == "owl" and owl.left_out == []
    assert of("alps", Target(polytope=KSparse(3))).target.to_dict() == {"polytope": KSparse(3).to_dict()}
    with pytest.raises(RelaxPruneError, match=r"certify is 'diagonal'.*or set weights to .keep"):
        of("alps", half, certify="diagonal")
    with pytest.raises(RelaxPruneError, match=r"use PruneRequest\.of"):
        PruneRequest(target=half, solver=make_solver("fw"))


def test_a_plan_says_what_the_name_means() -> None:
    plan = plan_model(tiny_model("llama"), solver="alps", sparsity=0.5)
    assert plan.polytope == {"sparsity": 0.5, "allocation": "layer"}
    assert "kept weights get new values, damping 0.01" in str(plan)
    assert "new values" not in str(plan_model(tiny_model("llama"), solver="fw", sparsity=0.5))


@pytest.mark.parametrize("solver", OVER_LAYERS)
@pytest.mark.parametrize("per", ["row", "layer"])
def test_published_damping_is_not_added_twice(solver: str, per: str) -> None:
    draw = Draw(5)
    weight, inputs = draw.normal(12, 32), draw.normal(64, 32) @ draw.normal(32, 32)
    gram = inputs.T @ inputs / 64
    polytope = KSparse.from_sparsity(0.5, (12, 32), per)
    own, given = (ReconstructionProblem(weight, gram, polytope, damping=damping) for damping in (0.0, 0.01))
    found, bare = solve(given, solver), solve(given, solver, damping=0.0)
    assert found.weight is not None and torch.equal(found.mask, bare.mask) and torch.equal(found.weight, bare.weight)
    more = solve(given, solver, damping=0.3)
    assert not torch.equal(found.mask, more.mask)
    if solver == "sparsegpt":  # ALPS has its own scaling, and its weights are fitted to the problem's objective
        alone = solve(own, solver)
        assert torch.equal(found.mask, alone.mask)
        assert torch.allclose(found.weight, alone.weight, rtol=1e-4, atol=1e-5)


def test_a_mask_problem_asks_for_the_mask_alone() -> None:
    draw = Draw(6)
    weight, inputs = draw.normal(8, 16), draw.normal(64, 16)
    problem = MaskProblem(weight, inputs.T @ inputs / 64, KSparse(8))
    for solver in PUBLISHED:
        assert solve(problem, solver).weight is None


@pytest.mark.parametrize("solver", OVER_LAYERS)
def test_a_run_by_name_is_resumed_and_verified(
    solver: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    limit = ("--max-iterations", "12")
    plain = [word for word in arguments(place, out, "--solver", solver) if solver == "alps" or word not in limit]
    interrupt(monkeypatch, out, plain)
    capsys.readouterr()
    for more in (["--no-refit"], ["--allocation", "uniform"]):
        assert main([*plain, *more, "--resume"]) == 2
        assert "cannot resume" in only_sentence(capsys)
    assert main([*plain, "--resume"]) == 0
    assert main([str(whole) if word == str(out) else word for word in plain]) == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    settings = json.loads((out / "relaxprune.json").read_text())["fingerprint"]["settings"]
    assert settings["weights"] == "refit" and settings["damping"] == 0.01
    assert settings["polytope"] == {"sparsity": 0.5, "allocation": "layer"}
    for mask in read_masks(out / "masks.safetensors").values():
        assert int(mask.sum()) == mask.numel() // 2
    assert main(["verify", str(out)]) == 0


def test_a_run_without_a_part_of_its_method_says_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(place, out, "--solver", "alps", "--no-refit", "--allocation", "uniform")) == 3
    said = only_sentence(capsys)
    assert "'alps' ran without new values for the kept weights (--refit) and one count for all rows of a layer" in said
    record = json.loads((out / "relaxprune.json").read_text())
    assert len(record["report"]["left_out"]) == 2 and record["notes"]["notices"][0] in said


def test_one_layer_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = Draw(7)
    weight, inputs = draw.normal(8, 16), draw.normal(64, 16)
    file, out, new = (tmp_path / name for name in ("layer.safetensors", "mask.safetensors", "new.safetensors"))
    save_file({"weight": weight, "gram": inputs.T @ inputs / 64}, file)
    words = ["solve", str(file), "--sparsity", "0.5", "--solver", "alps"]
    assert main([*words, "--out", str(out), "--weight-out", str(new)]) == 0
    masks, facts = read_mask_file(out)
    assert facts["damping"] == 0.01 and int(masks["weight"].sum()) == 64 and new.exists()
    capsys.readouterr()
    assert main([*words, "--no-refit"]) == 3
    assert "ran without new values for the kept weights" in only_sentence(capsys)
    assert main([*words, "--no-refit", "--damping", "0.1"]) == 2
    assert "there is no --refit" in only_sentence(capsys)
