"""Problem files: what any codebase writes is read, and what is no layer is one sentence."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from relaxprune.cli import main
from relaxprune.problems import NM, KSparse, RelaxPruneError, TransposableNM
from relaxprune.runs.problem_file import LayerProblem, read_problem_file, write_problem_file
from tests.docs.blocks import ROOT, blocks

from ..command_line import only_sentence

WITHOUT_US = "import sys\nsys.modules.update(relaxprune=None, torch=None)\n"


def test_round_trip(tmp_path: Path) -> None:
    layer = LayerProblem(torch.randn(3, 4), torch.eye(4).double(), torch.eye(4), torch.eye(4))
    write_problem_file(tmp_path / "file", layer)
    back = read_problem_file(tmp_path / "file")
    for name in ("weight", "gram", "cross", "dense_gram"):
        assert torch.equal(getattr(back, name), getattr(layer, name))
    write_problem_file(tmp_path / "file", LayerProblem(layer.weight, layer.gram))
    assert set(load_file(tmp_path / "file")) == {"weight", "gram"}
    assert read_problem_file(tmp_path / "file").cross is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gram": None}, "has no tensor 'gram'"),
        ({"weight": torch.ones(2)}, "must have 2 dimensions"),
        ({"weight": torch.ones(1, 2).to(torch.float8_e4m3fn)}, "one of the dtypes .* got torch.float8_e4m3fn"),
        ({"gram": torch.ones(2, 2, dtype=torch.int64)}, "'gram' .* got torch.int64"),
    ],
)
def test_what_is_no_layer(tmp_path: Path, changes: dict[str, torch.Tensor | None], words: str) -> None:
    tensors = {"weight": torch.ones(1, 2), "gram": torch.eye(2), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "file")
    with pytest.raises(RelaxPruneError, match=words):
        read_problem_file(tmp_path / "file")


def test_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RelaxPruneError, match="does not exist"):
        read_problem_file(tmp_path / "file")


def test_what_the_page_s_snippet_writes_is_solved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process that can import neither relaxprune nor torch; the best mask of each group is found by trying all."""
    snippet = next(block for block in blocks(ROOT / "docs/problem-file.md") if block.language == "python")
    subprocess.run([sys.executable, "-c", WITHOUT_US + snippet.text], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert main(["solve", "layer.safetensors", "--out", "mask.safetensors"]) == 0
    with safe_open("mask.safetensors", framework="np") as file:
        mask = np.unpackbits(file.get_tensor("weight"), axis=-1, count=16, bitorder="little").astype(bool)
        facts = json.loads(file.metadata()["extra"])
    layer = {name: tensor.double().numpy() for name, tensor in load_file("layer.safetensors").items()}
    groups = [np.isin(np.arange(4), kept) for kept in itertools.combinations(range(4), 2)]
    masks = np.array([np.concatenate(parts) for parts in itertools.product(groups, repeat=4)])  # every mask of a row
    best = 0.0
    for row in layer["weight"]:
        lost = np.where(masks, 0, row)
        best += float(((lost @ layer["gram"]) * lost).sum(axis=1).min())
    lost = np.where(mask, 0, layer["weight"])
    assert (mask.reshape(8, 4, 4).sum(axis=2) == 2).all()
    assert float(np.trace(lost @ layer["gram"] @ lost.T)) == pytest.approx(facts["objective"])
    assert facts["lower_bound"] <= best + 1e-9 and facts["objective"] <= best * 1.02


@pytest.mark.parametrize("polytope", [KSparse(3), KSparse(7, "layer", True), NM(2, 4), TransposableNM(1, 2), None])
def test_the_set_of_masks_goes_along(tmp_path: Path, polytope) -> None:
    write_problem_file(tmp_path / "file", LayerProblem(torch.randn(4, 8), torch.eye(8), polytope=polytope))
    back = read_problem_file(tmp_path / "file")
    assert back.polytope == polytope
    if polytope is None:
        with pytest.raises(RelaxPruneError, match="states no set of masks"):
            back.mask_problem()
    assert back.mask_problem(polytope or NM(1, 4)).polytope == (polytope or NM(1, 4))


def test_who_asks_decides_and_else_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, stating = tmp_path / "plain.safetensors", tmp_path / "stating.safetensors"
    layer = LayerProblem(torch.randn(4, 8), torch.eye(8), polytope=KSparse(2))
    write_problem_file(stating, layer)
    save_file({"weight": layer.weight, "gram": layer.gram}, plain, metadata={"format": "pt"})
    for words, sparsity in (
        ([stating], "0.75"),
        ([stating, "--sparsity", "0.5"], "0.5"),
        ([stating, "--pattern", "1:8"], "0.875"),
    ):
        assert main(["solve", *map(str, words)]) == 0
        assert f"sparsity        {sparsity}\n" in capsys.readouterr().out
    assert main(["compare", str(stating), "--solvers", "wanda,magnitude"]) == 0
    capsys.readouterr()
    for command in ("solve", "compare"):
        assert main([command, str(plain)]) == 2
        assert "give either --sparsity or --pattern, got neither" in only_sentence(capsys)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"schema_version": "3", "format": "relaxprune.problem"}, "has schema version '3', this relaxprune reads '2'"),
        ({"schema_version": "1", "format": "relaxprune.masks"}, "is not a problem file"),
        ({"schema_version": "1"}, "is not a problem file"),
        ({"polytope": "{"}, "its polytope is not valid JSON"),
        ({"polytope": "[2, 4]"}, "states no set of masks that is known here: .* by an object"),
        ({"polytope": json.dumps({"kind": "Cube"})}, "'Cube'; known kinds are .*ksparse"),
        ({"polytope": json.dumps({"kind": "nm", "keep": 5, "group": 4})}, "states no set of masks"),
        ({"polytope": json.dumps({"kind": "nm", "keep": 2, "of": 4})}, "states no set of masks"),
    ],
)
def test_another_version_or_set(tmp_path: Path, metadata: dict[str, str], words: str) -> None:
    save_file({"weight": torch.ones(1, 8), "gram": torch.eye(8)}, tmp_path / "file", metadata=metadata)
    with pytest.raises(RelaxPruneError, match=words):
        read_problem_file(tmp_path / "file")


def test_what_the_format_does_not_name_is_passed_over(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(1, 2), "gram": torch.eye(2), "bias": torch.ones(1)}
    save_file(tensors, tmp_path / "file", metadata={"format": "np", "tokens": "many"})
    found = read_problem_file(tmp_path / "file")
    assert found.polytope is None and found.weight.tolist() == [[1, 1]]


def test_what_version_1_does_not_know_needs_version_2(tmp_path: Path) -> None:
    own = {
        "row_groups": torch.tensor([0, 1]),
        "fisher": torch.ones(2, 1, 2),
        "linear": torch.ones(2, 2),
        "gram": torch.eye(2).repeat(2, 1, 1),
    }
    for name, tensor in [*own.items(), ("outputs", torch.eye(2))]:
        tensors = {"weight": torch.ones(2, 2), "gram": torch.eye(2), name: tensor}
        save_file(tensors, tmp_path / "file")
        with pytest.raises(RelaxPruneError, match="which version 1 does not know"):
            read_problem_file(tmp_path / "file")
        write_problem_file(tmp_path / "file", LayerProblem(**tensors))
        assert torch.equal(getattr(read_problem_file(tmp_path / "file"), name), tensor)
    layer = LayerProblem(torch.ones(2, 2), **own)
    write_problem_file(tmp_path / "file", layer)
    assert read_problem_file(tmp_path / "file").mask_problem(KSparse(1)).minimised.rank == 1
