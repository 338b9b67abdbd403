"""``relaxprune solve --refit``: a mask and new weights for one layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from relaxprune import KSparse, ReconstructionProblem, solve
from relaxprune.cli import main
from relaxprune.runs.mask_file import read_mask_file
from tests.random_problems import Draw

HALF = ["--sparsity", "0.5", "--refit"]


@pytest.fixture
def moments(tmp_path: Path) -> Path:
    """A layer whose inputs differ between the dense and the pruned model."""
    draw = Draw(3)
    pruned = draw.normal(80, 12) @ draw.normal(12, 12)
    dense = pruned + 0.3 * draw.normal(80, 12)
    tensors = {"weight": draw.normal(5, 12), "gram": pruned.T @ pruned / 80}
    save_file(tensors, tmp_path / "own.safetensors")
    tensors |= {"cross": dense.T @ pruned / 80, "dense_gram": dense.T @ dense / 80}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "layer.safetensors")
    return tmp_path / "layer.safetensors"


@pytest.mark.parametrize("name", ["own", "layer"])
def test_it_gives_what_the_library_gives(moments: Path, tmp_path: Path, name: str) -> None:
    file, out, new = moments.with_stem(name), tmp_path / "mask.safetensors", tmp_path / "new.safetensors"
    assert main(["solve", str(file), *HALF, "--out", str(out), "--weight-out", str(new)]) == 0
    tensors = load_file(file)
    moving = {key: tensors.get(key) for key in ("cross", "dense_gram")}
    problem = ReconstructionProblem(tensors["weight"], tensors["gram"], KSparse(6), damping=0.03, **moving)
    solution = solve(problem)
    masks, facts = read_mask_file(out)
    assert torch.equal(masks["weight"], solution.mask) and torch.equal(load_file(new)["weight"], solution.weight)
    assert facts["objective"] == solution.objective <= facts["kept_objective"]
    assert facts["dense_energy"] == problem.reference and facts["damping"] == 0.03
    assert facts["solver"] == "reconstruct" and facts["certificate"] == "perspective"


def test_exact_proves_more(moments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = []
    for number, more in enumerate(([], ["--certify", "exact"])):
        out = tmp_path / f"{number}.safetensors"
        assert main(["solve", str(moments), *HALF, *more, "--out", str(out)]) == 0
        facts.append(read_mask_file(out)[1])
    assert facts[0]["lower_bound"] < facts[1]["lower_bound"] <= facts[1]["objective"]
    assert facts[1]["objective"] <= 1.2 * facts[1]["lower_bound"]
    assert "proven by       exact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sparsity", "0.5", "--damping", "0.1"], "there is no --refit"),
        (["--sparsity", "0.5", "--weight-out", "w.safetensors"], "there is no --refit"),
        ([*HALF, "--certify", "sdp"], "--certify must be exact with --refit"),
        ([*HALF, "--damping", "-1"], "damping must lie in"),
        ([*HALF, "--out", "a.safetensors", "--weight-out", "a.safetensors"], "must be two files"),
    ],
)
def test_what_makes_no_sense_is_refused(
    moments: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", str(moments), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error
