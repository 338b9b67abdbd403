"""``relaxprune prune --dtype``: what is computed in another dtype is saved as the source stores it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from relaxprune.cli import main
from relaxprune.cli.option_groups import ModelGroup, PatternGroup
from relaxprune.cli.prune.folder import in_stored_dtype
from relaxprune.cli.prune.job import resolve
from relaxprune.cli.prune.run import prune_loaded
from relaxprune.cli.prune.words import PruneWords
from relaxprune.models.loading import LoadedModel, LoadOptions, load_model
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.runs.fingerprint import weights_sha256
from relaxprune.runs.mask_file import read_masks

from ..reports import prune_report
from ..tiny_llama import save_tiny_llama, write_text


def arguments(place: Path, *more: str) -> list[str]:
    """Prune the model in ``place/tiny`` into ``place/out``."""
    calibration = ["--calibration", str(write_text(place / "text.txt")), "--windows", "4", "--length", "32"]
    words = ["prune", str(place / "tiny"), "--sparsity", "0.5", "--out", str(place / "out"), *calibration]
    return [*words, "--max-iterations", "12", "--threads", "1", *more]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compute_dtype_does_not_change_what_is_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    save_tiny_llama(tmp_path / "tiny", blocks=1, dtype=dtype)
    other = "bfloat16" if dtype == torch.float32 else "float32"
    assert main(arguments(tmp_path, "--dtype", other)) == 0
    masks = read_masks(tmp_path / "out/masks.safetensors")
    with (
        safe_open(tmp_path / "tiny/model.safetensors", framework="pt") as before,
        safe_open(tmp_path / "out/model.safetensors", framework="pt") as after,
    ):
        assert set(before.keys()) == set(after.keys())
        for name in sorted(before.keys()):
            kept = masks.get(name, torch.ones(before.get_tensor(name).shape, dtype=torch.bool))
            assert after.get_tensor(name).dtype == dtype
            assert torch.equal(after.get_tensor(name), before.get_tensor(name).masked_fill(~kept, 0.0))


def test_new_weights_are_those_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounded when saved, they would not have the objective that was stated."""
    save_tiny_llama(tmp_path / "tiny", blocks=1, dtype=torch.bfloat16)
    assert main(arguments(tmp_path, "--refit", "--dtype", "float32")) == 2
    assert "new weights must be computed in the dtype that the model stores, torch.bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(arguments(tmp_path, "--refit", "--dtype", "bfloat16")) == 0


def test_a_source_that_changed_since_it_was_pruned_is_not_given_the_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_llama(tmp_path / "tiny", blocks=1)
    before = (tmp_path / "tiny/model.safetensors").read_bytes()
    words = arguments(tmp_path, "--dtype", "bfloat16")

    def prune_then_change(*given: Any, **named: Any) -> PruneReport:
        report = prune_loaded(*given, **named)
        tensors = load_file(tmp_path / "tiny/model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
        save_file(tensors, tmp_path / "tiny/model.safetensors", {"format": "pt"})
        return report

    with monkeypatch.context() as patch:
        patch.setattr("relaxprune.cli.prune.run.prune_loaded", prune_then_change)
        assert main(words) == 2
    assert "must keep its weights until the pruned model is saved" in capsys.readouterr().err
    assert not (tmp_path / "out/model.safetensors").exists()
    (tmp_path / "tiny/model.safetensors").write_bytes(before)
    assert main([*words, "--resume"]) == 0


def test_the_commit_that_was_pruned_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(save_tiny_llama(tmp_path / "tiny", blocks=1))
    asked: list[str | None] = []

    def load(source: str, options: LoadOptions) -> LoadedModel:
        asked.append(options.revision)
        return load_model(source, replace(options, revision=None))

    monkeypatch.setattr("relaxprune.cli.prune.folder.load_model", load)
    loading = ModelGroup(dtype="bfloat16", revision="main")
    loaded = replace(load_model(source, LoadOptions(dtype="bfloat16")), commit="c0ffee")
    job = resolve(source, PruneWords(PatternGroup("0.5"), loading=loading))
    in_stored_dtype(job, loaded, prune_report(), weights_sha256(loaded.model))
    assert asked == ["c0ffee"]


def test_the_recorded_dtype_is_that_of_the_computation_and_not_of_the_first_tensor(tmp_path: Path) -> None:
    file = save_tiny_llama(tmp_path / "tiny", blocks=1) / "model.safetensors"
    mixed = {name: tensor if "embed" in name else tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(mixed, file, {"format": "pt"})
    assert load_model(str(tmp_path / "tiny")).model.dtype == torch.float32
    assert main(arguments(tmp_path)) == 0
    record = json.loads((tmp_path / "out/relaxprune.json").read_text())
    assert record["fingerprint"]["model"]["dtype"] == "bfloat16"
