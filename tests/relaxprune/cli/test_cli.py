"""The smaller commands: version, help, solvers, solve, eval; how options are typed; what notices say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal

import pytest
import torch
from safetensors.torch import save_file

import relaxprune
from relaxprune import NM, MaskProblem, available_solvers
from relaxprune.cli import main
from relaxprune.cli.notices import report_notices, status_notice
from relaxprune.cli.prune.progress import PruneProgress, duration
from relaxprune.cli.solver_options import option_types, parse_options
from relaxprune.models.layers import SkippedLayer
from relaxprune.pruning.plan import PlannedLayer
from relaxprune.pruning.prune_report import UNREACHED
from relaxprune.runs.mask_file import read_mask_file
from relaxprune.solvers import Solver, registry
from relaxprune.solvers.reference.saliency import Wanda
from relaxprune.solving.solution import Status

from ..reports import event, layer_report, prune_report
from ..tiny_llama import save_tiny_llama, write_text


@pytest.fixture
def problem_file(tmp_path: Path, generator: torch.Generator) -> Path:
    weight = torch.randn(6, 16, generator=generator)
    inputs = torch.randn(64, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    save_file({"weight": weight, "gram": inputs.T @ inputs / 64}, tmp_path / "layer.safetensors")
    return tmp_path / "layer.safetensors"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"relaxprune {relaxprune.__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("prune", "eval", "solve", "solvers", "demo"))


def test_help_waits_for_no_library(tmp_path: Path) -> None:
    # tqdm reads its environment when it is imported: main must have had its say before.
    code = (
        "import sys, relaxprune.cli; print(sorted({'torch', 'transformers', 'tqdm', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["50%", " 50 %", "0.5"])
def test_a_share_or_per_cent(problem_file: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert main(["solve", str(problem_file), "--sparsity", text]) == 0
    said = capsys.readouterr().out
    assert "sparsity        0.5\n" in said and "no mask: --out FILE keeps it" in said


@pytest.mark.parametrize("text", ["50", "0", "1", "100%", "half", "nan", "-0.5"])
def test_no_share(problem_file: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert main(["solve", str(problem_file), "--sparsity", text]) == 2
    said = capsys.readouterr().err
    assert f"above 0 and below 1, got '{text}'" in said and ("for 50 per cent give 0.5" in said) == (text == "50")


def test_as_a_module_from_another_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "relaxprune", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"relaxprune {relaxprune.__version__}"


@pytest.mark.parametrize("words", [["prun"], ["prune"], ["prune", "x", "--sparsity", "half"], ["eval", "x", "--nope"]])
def test_usage_errors_are_exit_code_2(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_solvers_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solvers"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(available_solvers())
    for name in available_solvers():
        assert main(["solvers", name]) == 0
    assert "--option anneal=True" in capsys.readouterr().out or "fw" not in available_solvers()
    assert main(["solvers", "fww"]) == 2
    assert "did you mean 'fw'" in capsys.readouterr().err


@pytest.mark.parametrize("amount", [["--sparsity", "0.5"], ["--pattern", "2:4"]])
def test_solve_writes_mask_bound_and_settings(problem_file: Path, tmp_path: Path, amount: list[str]) -> None:
    out = tmp_path / "mask.safetensors"
    assert main(["solve", str(problem_file), *amount, "--out", str(out), "--max-iterations", "40"]) == 0
    masks, facts = read_mask_file(out)
    mask = masks["weight"]
    assert mask.shape == (6, 16) and (mask.sum(1) == 8).all()
    assert 0 <= facts["lower_bound"] <= facts["objective"]
    assert facts["solver"] == "fw" and facts["schema_version"] == 1 and len(facts["block_objective"]) == 6
    if amount[0] == "--pattern":
        from safetensors.torch import load_file

        tensors = load_file(problem_file)
        problem = MaskProblem(tensors["weight"], tensors["gram"], NM(2, 4))
        assert problem.objective(mask) == pytest.approx(facts["objective"], rel=1e-9)


def test_solve_prints_and_refuses(problem_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", str(problem_file), "--sparsity", "0.5"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("objective", "lower_bound", "relative_gap", "status"))
    (tmp_path / "taken").write_text("x")
    save_file({"weight": torch.ones(2, 4)}, tmp_path / "no_gram.safetensors")
    save_file({"weight": torch.ones(2, 4), "gram": torch.eye(3)}, tmp_path / "size.safetensors")
    save_file({"weight": torch.ones(2, 4), "gram": -torch.eye(4)}, tmp_path / "sign.safetensors")
    save_file({"weight": torch.full((2, 4), torch.nan), "gram": torch.eye(4)}, tmp_path / "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(problem_file.read_bytes()[:50])
    half = ["--sparsity", "0.5"]
    for file, more, expected in [
        (problem_file, [*half, "--out", str(tmp_path / "taken")], "exists"),
        (problem_file, [], "got neither"),
        (problem_file, ["--pattern", "2:5"], "5"),
        (problem_file, [*half, "--solver", "fww"], "did you mean 'fw'"),
        (tmp_path / "absent", half, "does not exist"),
        (tmp_path / "no_gram.safetensors", half, "no tensor 'gram'"),
        (tmp_path / "size.safetensors", half, "gram"),
        (tmp_path / "sign.safetensors", half, "gram"),
        (tmp_path / "nan.safetensors", half, "weight"),
        (tmp_path / "cut.safetensors", half, "is damaged: it is truncated"),
    ]:
        assert main(["solve", str(file), *more]) == 2, expected
        error = capsys.readouterr().err.strip()
        assert expected in error and "\n" not in error and "Traceback" not in error


def test_eval_says_length_and_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_llama(tmp_path / "tiny", blocks=1)
    text = write_text(tmp_path / "text.txt")
    words = ["eval", str(tmp_path / "tiny"), "--text", str(text), "--windows", "3", "--length", "16"]
    assert main(words) == 0
    assert "(3 windows of 16 tokens" in capsys.readouterr().out
    assert main([*words, "--windows", "5000"]) == 2
    assert "windows" in capsys.readouterr().err


@dataclass(frozen=True)
class Options(Wanda):
    name: ClassVar[str] = "x"
    flag: bool = True
    count: int = 3
    share: float = 0.5
    limit: float | None = None
    order: Literal["up", "down"] = "up"
    hidden: tuple[int, ...] = ()


def register(monkeypatch: pytest.MonkeyPatch, **solvers: type[Solver]) -> None:
    """Let the registry know more solvers, as another package's entry points would."""
    points = {name: SimpleNamespace(load=lambda found=found: found) for name, found in solvers.items()}
    monkeypatch.setattr(registry, "_outside", lambda: points)


def test_options_are_typed_by_the_dataclass(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, x=Options)
    words = ["flag=no", "count=7", "share=1", "limit=none", "order=down"]
    assert parse_options("x", words) == {"flag": False, "count": 7, "share": 1.0, "limit": None, "order": "down"}
    assert "hidden" not in option_types(Options())
    for word, expected in [
        ("count=2.5", "must be int"),
        ("flag=7", "must be bool"),
        ("order=left", "must be up or down"),
        ("shares=1", "did you mean 'share'"),
        ("zzz=1", "its options are flag, count"),
        ("hidden=1", "cannot be given on the command line"),
        ("count", "KEY=VALUE"),
    ]:
        with pytest.raises(relaxprune.RelaxPruneError, match=expected):
            parse_options("x", [word])
    with pytest.raises(relaxprune.RelaxPruneError, match="given twice"):
        parse_options("x", ["count=1", "count=2"])


def test_notices() -> None:
    good = prune_report(layer_report("a"), skipped=[SkippedLayer("head", "left alone")])
    assert report_notices(good) == []
    unreached = replace(good, skipped=[SkippedLayer("expert", UNREACHED)])
    assert "1 layers were not pruned" in report_notices(unreached)[0] and "expert" in report_notices(unreached)[0]
    broken = replace(good, layers=[layer_report(f"layer{i}", status="NOT_FINITE") for i in range(5)])
    assert "5 layers ended as NOT_FINITE (layer0, layer1, layer2 and 2 more)" in report_notices(broken)[0]
    other_way = replace(good, propagation="rerun: the blocks share state")
    assert "the blocks share state" in report_notices(other_way)[0]
    assert status_notice(Status.CONVERGED) is None and status_notice(Status.NOT_FINITE)


def test_progress_counts_work_not_layers(capsys: pytest.CaptureFixture[str]) -> None:
    layers = [
        PlannedLayer(name, "Linear", 10, cols, 5, block) for block, (name, cols) in enumerate([("a", 10), ("b", 20)])
    ]
    with PruneProgress(layers) as progress:
        progress(event("layer_start", "a"))
        progress(event("layer_done", "a", layer_report("a"), seconds_elapsed=10.0))
    line = capsys.readouterr().out.strip()
    assert line == "pruning: block 1/2, layer 1/2, a: error 0.2000, 0.500 of Wanda's, gap 0.500, left 40.0 s"
    with PruneProgress(layers) as progress:
        progress(event("layer_done", "a", layer_report("a"), seconds_elapsed=0.1))
    assert capsys.readouterr().out.strip().endswith("time left unknown"), "a block taken from disk says nothing of time"
    assert duration(3725) == "1:02:05" and duration(3.21) == "3.2 s"
