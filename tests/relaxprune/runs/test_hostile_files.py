"""Files that were changed at random: every command ends with an exit code and at most one sentence, and in time."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from relaxprune.cli import main
from relaxprune.masks.compact import compact
from relaxprune.models.loading import load_model
from relaxprune.problems import RelaxPruneError
from relaxprune.runs.mask_file import write_masks
from relaxprune.runs.problem_file import LayerProblem, write_problem_file

from ..tiny_llama import save_tiny_llama
from .test_run_folder import run

TRIES = 60  # of each command
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**62, 1e308, "", "x", "../../x", "\0", [], {}, [1], {"a": 1}, [[2**62]], "é" * 99,
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, its compact form, a mask file and a problem file."""
    root = tmp_path_factory.mktemp("good")
    source = save_tiny_llama(root / "source", blocks=1)
    run(root / "run", source, LlamaForCausalLM.from_pretrained(source))
    compact(root / "run", root / "small")
    (root / "run/evaluation.json").write_text(json.dumps({"schema_version": 1, "results": [result()]}))
    write_masks(root / "masks.safetensors", {"a": torch.ones(4, 9) > 0, "b": torch.eye(3) > 0}, {"note": [1, 2]})
    write_problem_file(root / "problem.safetensors", LayerProblem(torch.ones(2, 4), torch.eye(4)))
    return root


def result() -> dict[str, Any]:
    texts = dict.fromkeys(("method", "model", "text", "tokens_sha256", "measured"), "x")
    kept = {"mean": 0.2, "standard_error": 0.1, "window_means": [0.1, 0.3], "against": "x", "against_sha256": "x"}
    numbers = {"windows": 2, "length": 8, "perplexity": 2.0, "mean_loss": 0.7}
    return {**texts, **numbers, "own": True, "versions": {}, "divergence": kept}


def change_json(value: Any, chance: random.Random) -> Any:
    """Put something else in the place of one part of a JSON value, or leave it out."""
    holder: Any = {"": value}
    key: Any = ""
    while isinstance(holder[key], (dict, list)) and holder[key] and chance.random() < 0.8:
        holder = holder[key]
        key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
    if chance.random() < 0.2 and key != "":
        del holder[key]
        return value
    holder[key] = chance.choice(VALUES)
    return holder[key] if key == "" else value


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flip a bit, cut, append, or take away."""
    place = chance.randrange(len(data))
    kind = chance.randrange(4)
    if kind == 0:
        return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    return (data[:place], data + data[:place], data[:place] + data[place + 1 :])[kind - 1]


def damage(path: Path, chance: random.Random) -> None:
    """Change a file: its bytes, or the JSON in it with lengths that fit."""
    data = path.read_bytes()
    if chance.random() < 0.3:
        path.write_bytes(change_bytes(data, chance))
    elif path.suffix == ".json":
        path.write_text(json.dumps(change_json(json.loads(data), chance)))
    else:
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        metadata = header.get("__metadata__", {})
        inner = [key for key, text in metadata.items() if text[:1] in ("{", "[", "n")]
        if inner and chance.random() < 0.5:
            key = chance.choice(inner)
            metadata[key] = json.dumps(change_json(json.loads(metadata[key]), chance))
        else:
            header = change_json(header, chance)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


COMMANDS: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "stats": ("masks.safetensors", lambda place: ["masks", "stats", str(place / "masks.safetensors")]),
    "export": (
        "masks.safetensors",
        lambda place: ["masks", "export", str(place / "masks.safetensors"), str(place / "bools.safetensors")],
    ),
    "solve": (
        "problem.safetensors",
        lambda place: ["solve", str(place / "problem.safetensors"), "--sparsity", "0.5", "--max-iterations", "5"],
    ),
    "restore": (
        "small/model.compact.safetensors",
        lambda place: ["masks", "restore", str(place / "small"), str(place / "again")],
    ),
    "kernels": ("run/model.safetensors", lambda place: ["masks", "semi-structured", str(place / "run")]),
    "record": ("run/relaxprune.json", lambda place: ["report", str(place / "run")]),
    "evaluations": ("run/evaluation.json", lambda place: ["report", str(place / "run")]),
}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_no_file_breaks_loading(good: Path, tmp_path: Path, name: str) -> None:
    for seed in range(TRIES // 4):
        place = shutil.copytree(good / "source", tmp_path / str(seed))
        damage(place / name, random.Random(f"{name} {seed}"))
        try:
            load_model(str(place))
        except RelaxPruneError as error:
            assert "\n" not in str(error), f"seed {seed}"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_file_breaks_a_command(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Drawing is slow, and what is drawn has been checked by then.
    monkeypatch.setattr("relaxprune.report.writing.render", lambda _page, _name: "")
    monkeypatch.setattr("relaxprune.report.figures.svg", lambda *_: "")
    file, command = COMMANDS[name]
    for seed in range(TRIES):
        chance = random.Random(f"{name} {seed}")
        place = tmp_path / str(seed)
        shutil.copytree(good, place, ignore=shutil.ignore_patterns("source"))
        damage(place / file, chance)
        started = time.perf_counter()
        code = main(command(place))
        error = capsys.readouterr().err
        assert code in (0, 2, 3) and error.count("\n") <= 1, f"seed {seed}: {error}"
        assert time.perf_counter() - started < 10, f"seed {seed}"
        shutil.rmtree(place)
