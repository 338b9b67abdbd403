"""``relaxprune speed``: on a CPU it runs, says what it is worth, and refuses to compare what is not the same model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from relaxprune.cli import main
from relaxprune.cli.speed import speed_lines
from relaxprune.conversion import convert_run
from relaxprune.conversion.packed import _FORM
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.container import write_container
from relaxprune.timing import SpeedOptions, measure_speed

QUICK = SpeedOptions(tokens=(1, 4), prompt=8, new_tokens=2, repeats=1)
WORDS = ["--tokens", "1,4", "--prompt", "8", "--new-tokens", "2", "--repeats", "1"]


def test_a_table_numbers_and_a_picture(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    assert main(["speed", str(runs / "two_of_four"), *WORDS, "--out", str(out)]) == 3
    printed = capsys.readouterr()
    assert "semi-structured against dense bfloat16" in printed.out and "prefill of 8 tokens" in printed.out
    assert "the zeros are worth nothing here" in printed.err
    content = json.loads(out.read_text())
    assert [(item["rows"], item["tokens"]) for item in content["layers"]] == [(32, 1), (32, 4)]
    assert all(item["dense_s"] > 0 and item["converted_s"] > 0 for item in content["layers"])
    assert content["device"] == str(SpeedOptions().place)
    assert content["kernel"] == "" and content["difference"]["relative"] == 0
    assert content["dense"]["weight_bytes"] == content["converted"]["weight_bytes"] > 0
    assert content["dense"]["decode_s"] > 0
    picture = out.with_suffix(".svg").read_text()
    assert picture.startswith("<svg ") and "decode" in picture


def test_a_folder_of_another_run_is_refused(runs: Path, tmp_path: Path) -> None:
    convert_run(runs / "half", "macko", tmp_path / "out")
    found = measure_speed(runs / "half", QUICK, converted=tmp_path / "out")
    assert found.target == "macko" and not any("zeros alone" in line for line in speed_lines(found))
    assert "include 8-bit weights and another runtime" in speed_lines(replace(found, target="openvino"))[1]
    with pytest.raises(RelaxPruneError, match="was made of another run"):
        measure_speed(runs / "two_of_four", QUICK, converted=tmp_path / "out")
    with pytest.raises(RelaxPruneError, match="a target or a converted folder"):
        measure_speed(runs / "half", QUICK, to="macko", converted=tmp_path / "out")


def test_other_weights_than_the_run_s_are_refused(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_run(runs / "half", "macko", out)
    path = out / "model.macko.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key not in ("sha256", "format")}
    name = next(name for name in tensors if name.endswith("c_0"))
    write_container(path, _FORM, {**tensors, name: tensors[name] * 2}, metadata)
    with pytest.raises(RelaxPruneError, match="more than rounding explains"):
        measure_speed(runs / "half", QUICK, converted=out)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"tokens": ()}, "at least one number"),
        ({"tokens": (0,)}, "tokens must be a whole number"),
        ({"prompt": 0}, "prompt must be"),
        ({"repeats": 0}, "repeats must be"),
        ({"device": "nowhere"}, "nowhere"),
    ],
)
def test_options_that_make_no_sense(wrong: dict, part: str) -> None:
    with pytest.raises(RelaxPruneError, match=part):
        SpeedOptions(**wrong)


def test_a_prompt_that_is_too_long_is_refused(runs: Path) -> None:
    with pytest.raises(RelaxPruneError, match="128 positions"):
        measure_speed(runs / "half", SpeedOptions(tokens=(1,), prompt=128, new_tokens=1), to="macko")
