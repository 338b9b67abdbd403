"""What is refused before any work, how errors inside read, how a broken layer and an interruption end a command."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from relaxprune.cli import main
from relaxprune.problems import Problem
from relaxprune.runs.mask_file import read_masks
from relaxprune.solvers import Answer, Run, Solver, Status, registry

from ..command_line import only_sentence
from ..tiny_llama import save_tiny_llama, write_text


@dataclass(frozen=True)
class Shaky(Solver):
    """Breaks down on the widest layers only."""

    name: ClassVar[str] = "shaky"
    summary: ClassVar[str] = "breaks down"
    honours: ClassVar[frozenset[str]] = frozenset({"max_iterations"})

    def run(self, problem: Problem, run: Run) -> Answer:
        if problem.shape[1] > 32:
            return Answer(run.start.clone(), status=Status.NOT_FINITE)
        return Answer(problem.polytope.round(problem.score("wanda")))


@pytest.fixture
def shaky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_outside", lambda: {"shaky": SimpleNamespace(load=lambda: Shaky)})


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relaxprune.cli.loading.load", lambda *_: pytest.fail("the model was loaded"))


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer.safetensors"
    save_file({"weight": torch.randn(4, 16), "gram": torch.eye(16)}, path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a text; made once, for saving writes to stderr."""
    folder = tmp_path_factory.mktemp("source")
    save_tiny_llama(folder / "tiny", blocks=2)
    write_text(folder / "text.txt")
    return folder


def prune_words(source: Path, out: Path, *more: str) -> list[str]:
    """The words of a quick run."""
    effort = ["--windows", "2", "--length", "16", "--max-iterations", "8", "--threads", "1"]
    amount = [] if "--pattern" in more else ["--sparsity", "0.5"]
    text = ["--calibration", str(source / "text.txt")]
    return ["prune", str(source / "tiny"), "--out", str(out), *amount, *text, *effort, *more]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--sparsity", "1.5"], "sparsity"),
        (["--pattern", "5:4"], "keep is 5"),
        (["--start", "best"], "start must be one of"),
        (["--polish", "shine"], "polish must be"),
        (["--seed", "-1"], "seed must be a whole number of at least 0, got -1"),
        (["--seed", str(2**63)], "seed must be at most"),
        (["--max-iterations", "0"], "max_iterations must be a whole number of at least 1, got 0"),
        (["--time-limit", "inf"], "time_limit_s must be a positive number, got inf"),
        (["--gap-tolerance", "nan"], "gap_tolerance must be a positive number, got nan"),
        (["--windows", "0"], "windows must be a whole number of at least 1, got 0"),
        (["--length", "1"], "length must be a whole number of at least 2, got 1"),
        (["--calibration", "missing.txt"], "no such file"),
        (["--calibration", "builtni"], "did you mean 'builtin'"),
        (["--calibration", "builtin:4,slef:4"], "did you mean 'self'"),
        (["--calibration", "builtin:4,self"], "a number of windows with each of its parts or with none"),
        (["--option", "anneal=perhaps"], "must be bool"),
        (["--dtype", "float7"], "dtype"),
        (["--device", "foo"], "device must be one that works here (cpu"),
        (["--out", "layer.safetensors/below"], "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_prune_refuses_before_it_loads(
    tmp_path: Path,
    source: Path,
    layer: Path,
    no_loading: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(prune_words(source, tmp_path / "out", *more)) == 2
    assert expected in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_a_solver_that_cannot_take_a_layer_is_refused_before_calibration(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from relaxprune.cli.prune import run

    monkeypatch.setattr(run, "calibration_windows", lambda *_, **__: pytest.fail("calibration was read"))
    assert main(prune_words(source, tmp_path / "out", "--solver", "enumerate")) == 2
    assert "layer 'model.layers.0.self_attn.q_proj' of shape (32, 32): " in only_sentence(capsys)


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:77"])
def test_devices_that_are_not_there(
    tmp_path: Path, source: Path, layer: Path, no_loading: None, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    for words in (
        ["solve", str(layer), "--sparsity", "0.5"],
        ["compare", str(layer), "--sparsity", "0.5"],
        ["eval", str(source / "tiny")],
        prune_words(source, tmp_path / "out"),
    ):
        assert main([*words, "--device", device]) == 2, words
        assert "device must be one that works here (cpu" in (text := only_sentence(capsys)) and device in text


def test_outputs_that_cannot_be_written(
    tmp_path: Path, layer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from relaxprune.solving import comparison, solving

    for module in (comparison, solving):
        monkeypatch.setattr(module, "solve", lambda *_, **__: pytest.fail("a layer was solved"))
    half = [str(layer), "--sparsity", "0.5", "--out"]
    wrong = [
        ("solve", tmp_path / "absent/mask.safetensors", "create the folder"),
        ("solve", layer / "mask.safetensors", "create the folder"),
        ("solve", layer, "exists; name a new one"),
        ("compare", layer / "below", "cannot be written"),
        ("compare", layer, "is a file"),
    ]
    if Path("/proc/self").exists():  # refuses new files even to the superuser
        wrong += [
            ("solve", Path("/proc/mask"), "cannot be written"),
            ("compare", Path("/proc/new"), "cannot be written"),
        ]
    for command, out, expected in wrong:
        assert main([command, *half, str(out), *(["--no-plot"] if command == "compare" else [])]) == 2
        assert expected in only_sentence(capsys)


def test_compare_refuses_what_every_solver_would(layer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, expected in (["--start", "best"], "start"), (["--seed", "-1"], "seed"), (["--time-limit", "0"], "time"):
        assert main(["compare", str(layer), "--sparsity", "0.5", *more]) == 2
        assert expected in only_sentence(capsys)


@pytest.mark.parametrize("error", [TypeError("inside"), ValueError("inside"), OSError("inside")], ids=repr)
def test_an_error_inside_is_no_bad_input(layer: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("relaxprune.solving.solving.solve", broken)
    with pytest.raises(type(error), match="inside"):
        main(["solve", str(layer), "--sparsity", "0.5"])


def test_a_broken_layer_does_not_end_the_run(
    tmp_path: Path, source: Path, shaky: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = prune_words(source, tmp_path / "out", "--solver", "shaky")
    assert main(words) == 3
    sentence = only_sentence(capsys)
    assert "2 layers ended as NOT_FINITE (model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj)" in sentence
    record = json.loads((tmp_path / "out/relaxprune.json").read_text())
    failed = {item["name"] for item in record["report"]["layers"] if item["status"] == "NOT_FINITE"}
    assert failed == {"model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"}
    assert len(record["report"]["layers"]) == 14
    mask = read_masks(tmp_path / "out/masks.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert (mask.sum(1) == mask.shape[1] // 2).all()
    assert main([*words, "--resume"]) == 3, "a finished run still says what it said"
    assert only_sentence(capsys) == sentence


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_says_what_is_left(
    tmp_path: Path, source: Path, layer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = prune_words(source, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("relaxprune.solving.solving.solve", interrupt)
        patch.setattr("relaxprune.solving.comparison.solve", interrupt)
        patch.setattr("relaxprune.cli.loading.load", interrupt)
        for command in (
            ["solve", str(layer), "--sparsity", "0.5"],
            ["compare", str(layer), "--sparsity", "0.5"],
            ["eval", str(source / "tiny")],
            ["demo", str(source / "tiny"), "--out", str(tmp_path / "demo")],
            words,
        ):
            assert main(command) == 130
            assert only_sentence(capsys) == "relaxprune: interrupted; nothing is written"
    with monkeypatch.context() as patch:
        patch.setattr("relaxprune.pruning.mask_solver.solve", interrupt)
        assert main(words) == 130
        assert only_sentence(capsys).endswith("nothing is written") and not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr("relaxprune.cli.prune.run.finish_folder", interrupt)
        assert main(words) == 130
        kept = f"2 finished blocks are kept in {tmp_path / 'out'}, and --resume continues from them"
        assert only_sentence(capsys) == f"relaxprune: interrupted; {kept}"
    assert main([*words, "--resume"]) == 0


@pytest.mark.skipif(os.name == "nt", reason="hidden files of POSIX systems")
def test_resuming_sweeps_what_a_killed_writer_left(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, out = prune_words(source, tmp_path / "out"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("relaxprune.cli.prune.run.finish_folder", interrupt)
        assert main(words) == 130
    scratch = f".model.safetensors.{'0' * 32}.part"
    for folder in (out, out / ".relaxprune", out / ".relaxprune/blocks"):
        (folder / scratch).write_text("half")
    (out / ".mine.part").write_text("mine")
    assert main([*words, "--resume"]) == 0
    assert sorted(path.name for path in out.rglob(".*")) == [".mine.part"]
