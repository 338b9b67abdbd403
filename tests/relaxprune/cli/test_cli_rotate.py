"""``relaxprune rotate`` and ``prune --rotate``: plain checkpoints, a run that is verified, killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from relaxprune.cli import main

from ..command_line import SAME, arguments, interrupt, only_sentence

ROTATE = ("--rotate", "free", "--rotate-option", "steps=3")


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A run in a rotated basis that nothing interrupted."""
    out = place / "turned"
    assert main(arguments(place, out, *ROTATE)) == 0
    return out


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.arange(2, 34).unsqueeze(0)).logits


def test_the_folder_holds_the_dense_model_in_the_basis_of_the_masks(
    place: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = logits(place / "tiny")
    assert (logits(run / "dense") - dense).norm() < 1e-5 * dense.norm()
    before, after = (load_file(folder / "model.safetensors") for folder in (run / "dense", run))
    name = "model.layers.0.mlp.up_proj.weight"
    kept = after[name] != 0
    assert float(kept.float().mean()) == 0.5 and torch.equal(before[name][kept], after[name][kept])
    assert not torch.equal(before[name], load_file(place / "tiny" / "model.safetensors")[name])
    assert main(["verify", str(run)]) == 0 and "those of" in capsys.readouterr().out
    stated = json.loads((run / "relaxprune.json").read_text())["fingerprint"]["model"]["rotation"]
    assert (
        stated["stream"] and stated["asked"]["learner"] == "error" and stated["asked"]["learner_options"]["steps"] == 3
    )
    card = (run / "README.md").read_text()
    assert "`dense/` holds it in that basis" in card and "no longer tied" in card and "load_rotated" not in card


@pytest.mark.long
def test_rotate_writes_a_model_that_prune_takes(place: Path, run: Path, tmp_path: Path) -> None:
    """The two commands give what the one does."""
    words = ["--calibration", str(place / "text.txt"), "--windows", "4", "--length", "32", "--threads", "1"]
    turned = tmp_path / "turned"
    assert main(["rotate", str(place / "tiny"), "--out", str(turned), "--rotate-option", "steps=3", *words]) == 0
    assert load_file(turned / "model.safetensors").keys() == load_file(run / "dense" / "model.safetensors").keys()
    for name, tensor in load_file(turned / "model.safetensors").items():
        assert torch.equal(tensor, load_file(run / "dense" / "model.safetensors")[name]), name
    record = json.loads((turned / "rotation.json").read_text())
    assert record["rotation"]["heads"][0]["heads"] == 2 and record["rotation"]["difference"] < 1e-5


@pytest.mark.long
def test_interrupted_and_resumed_is_identical(
    place: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    words = arguments(place, out, *ROTATE)
    interrupt(monkeypatch, out, words)
    rotated = (out / "dense" / "rotation.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*words, "--rotate-option", "rate=0.02", "--resume"]) == 2
    assert "learner_options.rate was 0.01 and is now 0.02" in only_sentence(capsys)
    assert main([*words, "--resume"]) == 0
    assert (out / "dense" / "rotation.json").stat().st_mtime_ns == rotated
    assert all((out / name).read_bytes() == (run / name).read_bytes() for name in SAME)


def test_another_dense_model_is_noticed(
    place: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "dense" / "model.safetensors"
    kept = file.read_bytes()
    tensors = load_file(file)
    tensors["model.norm.weight"] *= 2
    try:
        save_file(tensors, file, {"format": "pt"})
        assert main(["verify", str(run)]) == 3
        assert "'dense/model.safetensors' is not the one that was written" in capsys.readouterr().err
    finally:
        file.write_bytes(kept)
    assert main(["masks", "export", str(run), str(tmp_path / "package")]) == 2
    assert "rotated its model, so its masks are not for the base model" in only_sentence(capsys)


@pytest.mark.long
def test_a_run_with_a_basis_for_each_block(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "blocks"
    assert main(arguments(place, out, "--rotate", "blocks", "--rotate-option", "steps=3")) == 0
    assert main(["verify", str(out)]) == 0
    text = ["--text", str(place / "text.txt"), "--windows", "2", "--length", "32"]
    assert main(["eval", str(out), "--against", str(place / "tiny"), *text]) == 0
    offloaded = arguments(place, tmp_path / "disk", "--offload", "disk")
    assert main([*offloaded[:1], str(out / "dense"), *offloaded[2:]]) == 0
    for card in (out / "README.md", out / "dense" / "README.md", tmp_path / "disk" / "README.md"):
        assert "`relaxprune.load_rotated(folder)` loads the model" in card.read_text()
    assert (tmp_path / "disk" / "masks.safetensors").read_bytes() == (out / "masks.safetensors").read_bytes()


def test_no_rotated_model_is_written_over_or_mixed_up(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One in the run's folder may be the user's own, by ``relaxprune rotate``: it is never deleted."""
    out = tmp_path / "mine"
    own = out / "dense"
    text = ["--calibration", str(place / "text.txt"), "--windows", "2", "--length", "32"]
    assert (
        main(["rotate", str(place / "tiny"), "--out", str(own), "--rotate", "heads", "--rotate-by", "pca", *text]) == 0
    )
    kept = {path.name: path.read_bytes() for path in own.iterdir()}
    for words in (ROTATE, (), ("--resume",)):
        capsys.readouterr()
        assert main(arguments(place, out, *words)) == 2
        assert f"holds a rotated model: add --resume to go on with it by the same options, delete {str(own)!r}" in (
            only_sentence(capsys)
        )
    assert main(arguments(place, out, *ROTATE, "--resume")) == 2
    assert 'asked.rotate was "heads" and is now "free"' in only_sentence(capsys)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == kept
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == ["dense"]


def test_a_run_without_a_rotation_gets_none_later(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plain"
    interrupt(monkeypatch, out, arguments(place, out))
    capsys.readouterr()
    assert main(arguments(place, out, *ROTATE, "--resume")) == 2
    assert only_sentence(capsys).endswith(f"cannot resume the run in {str(out)!r}: it was begun without --rotate")
    assert not (out / "dense").exists()


def test_a_full_disk_is_told_before_anything_is_learned(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both models are counted, and the head that is a weight of its own then."""
    size = (place / "tiny" / "model.safetensors").stat().st_size
    usage = type("Usage", (), {"free": int(1.9 * size)})
    monkeypatch.setattr("relaxprune.support.outputs.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("relaxprune.cli.rotating.rotate_model", None)
    assert main(arguments(place, tmp_path / "out", *ROTATE)) == 2
    assert "MiB for the rotated model and the pruned one, and" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rotate", "all"], "rotate must be one of free, heads, blocks, got 'all'"),
        (["--rotate-by", "pca"], "--rotate-by is given, but there is no --rotate"),
        ([*ROTATE, "--rotate-option", "stepz=1"], "learner 'error' has no option 'stepz'"),
        ([*ROTATE, "--dtype", "float64"], "must be written in the dtype that its source stores, got --dtype float64"),
        ([*ROTATE, "--offload", "disk"], "must be whole in memory to be rotated, got --offload disk"),
        ([*ROTATE, "--memory", "4GiB"], "must be whole in memory to be rotated, got --memory 4GiB"),
    ],
)
def test_refusals(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(arguments(place, tmp_path / "out", *words)) == 2
    assert sentence in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_plans_say_what_is_not_in_them(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(place, tmp_path / "out", *ROTATE), "--plan"]) == 0
    assert "time of --rotate not predicted" in capsys.readouterr().out and not (tmp_path / "out").exists()
    words = ["plan", str(place / "tiny"), "--sparsity", "0.5", "--flops", "1e12", "--bandwidth", "1e11"]
    assert main([*words, "--rotate", "heads"]) == 0
    assert "time of --rotate not predicted" in capsys.readouterr().out
