"""``relaxprune prune``: the whole way on a tiny llama, interruption and resumption, and everything that is refused."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from relaxprune.cli import main
from relaxprune.runs.mask_file import read_masks

from ..command_line import SAME, arguments, only_sentence, run_process
from ..record_keys import documented_keys, keys_of
from ..tiny_llama import CHAT_TEMPLATE, save_tiny_llama, write_text

# Where runs are killed: the Nth call of a function of the run folder's module.
KILLS = {
    "after one block": ("write_masks", 2),
    "after two blocks": ("write_masks", 3),
    "before the check": ("verify_saved_model", 1),
    "before the record": ("write_json", 2),
}


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A run that nothing interrupted, in a process of its own."""
    out = place / "finished"
    done = run_process(["-m", "relaxprune", *arguments(place, out)], place)
    assert done.returncode == 0, done.stderr
    return out


def test_the_folder_loads_and_has_what_it_should(place: Path, finished: Path) -> None:
    dense = AutoModelForCausalLM.from_pretrained(place / "tiny").state_dict()
    pruned = AutoModelForCausalLM.from_pretrained(finished)
    masks = read_masks(finished / "masks.safetensors")
    assert len(masks) == 21
    for name, weight in pruned.state_dict().items():
        mask = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(weight[mask].view(torch.int32), dense[name][mask].view(torch.int32))
        assert not weight[~mask].view(torch.int32).any()
    for name, mask in masks.items():
        assert (mask.sum(-1) == mask.shape[-1] // 2).all(), name
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(finished).chat_template == CHAT_TEMPLATE


def test_the_record_has_every_number(finished: Path) -> None:
    record = json.loads((finished / "relaxprune.json").read_text())
    assert record["fingerprint"]["settings"]["solver"] == "fw"
    assert record["fingerprint"]["calibration"]["windows"] == 5  # four of the text
    assert len(record["fingerprint"]["model"]["weights_sha256"]) == 64
    assert "--sparsity 0.5" in record["notes"]["command"]
    assert len(record["report"]["layers"]) == 21
    for layer in record["report"]["layers"]:
        assert layer["sparsity"] == layer["requested_sparsity"] == 0.5
        assert 0 <= layer["lower_bound"] <= layer["objective"] <= layer["wanda_objective"]
        assert layer["tokens"] == 5 * 32
    skipped = {layer["name"] for layer in record["report"]["skipped"]}
    assert "lm_head" in skipped or "model.embed_tokens" in skipped


def test_every_key_is_documented_and_every_documented_key_is_there(finished: Path) -> None:
    found, documented = keys_of(json.loads((finished / "relaxprune.json").read_text())), documented_keys()
    assert len(documented) > 60
    assert [key for key in sorted(found) if not any(fnmatchcase(key, known) for known in documented)] == []
    assert [known for known in sorted(documented) if not any(fnmatchcase(key, known) for key in found)] == []


def test_the_record_tells_the_checkpoint(place: Path, finished: Path) -> None:
    model = json.loads((finished / "relaxprune.json").read_text())["fingerprint"]["model"]
    with safe_open(place / "tiny/model.safetensors", framework="pt") as file:
        weights = sum(file.get_tensor(name).numel() for name in sorted(file.keys()))
    assert model["checkpoint_dtypes"] == {"F32": weights}
    assert (model["kind"], model["package"], model["commit"]) == ("folder", None, None)
    assert model["revision"] is None and model["trust_remote_code"] is False


@pytest.fixture(scope="module")
def killed(place: Path) -> dict[str, Path]:
    """Runs that were killed, by where: they share the process that starts them, and each is resumed by one test."""
    words = [str(Path(__file__).parents[1] / "kill_at.py")]
    folders = {where: place / where for where in KILLS}
    for where, (function, call) in KILLS.items():
        words += ["--", function, str(call), *arguments(place, folders[where])]
    done = run_process(words, place)
    assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize("where", ["after one block", "before the check", "before the record"])
def test_killed_and_resumed_is_identical(place: Path, finished: Path, killed: dict[str, Path], where: str) -> None:
    out = killed[where]
    assert not (out / "relaxprune.json").exists()
    assert main(arguments(place, out, "--resume")) == 0
    for name in SAME:
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    assert not (out / ".relaxprune").exists()


def test_a_deleted_block_is_solved_again(place: Path, finished: Path, killed: dict[str, Path]) -> None:
    out = killed["after two blocks"]
    (out / ".relaxprune/blocks/00000.safetensors").unlink()
    assert main(arguments(place, out, "--resume")) == 0
    assert (out / "masks.safetensors").read_bytes() == (finished / "masks.safetensors").read_bytes()


def test_resume_of_a_finished_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(arguments(place, out)) == 0
    assert main(arguments(place, out, "--resume")) == 0
    assert "as they were written" in capsys.readouterr().out
    (out / "model.safetensors").unlink()
    assert main(arguments(place, out, "--resume")) == 2
    assert "model.safetensors' is missing" in only_sentence(capsys)


def test_resume_refuses_other_settings(
    place: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_text(tmp_path / "other.txt", words=3000)
    changes = {
        "settings.seed was 0 and is now 1": ["--seed", "1"],
        "calibration.source was": ["--calibration", str(other)],
        "settings.max_iterations was 12 and is now 13": ["--max-iterations", "13"],
        "settings.solver was": ["--solver", "sparsefw"],
        "software.pyscipopt was null": ["--solver", "exact", "--max-iterations", "5"],
    }
    for expected, change in changes.items():
        assert main(arguments(place, finished, "--resume", *change)) == 2
        assert expected in only_sentence(capsys)
    save_tiny_llama(tmp_path / "tiny", tied=False)
    assert main([*arguments(tmp_path, finished, "--resume"), "--calibration", str(place / "text.txt")]) == 2
    assert "model.weights_sha256 was" in only_sentence(capsys)


def test_pattern_solver_options_and_layer_choice(place: Path, tmp_path: Path) -> None:
    more = ["--pattern", "2:4", "--include", "*.mlp.*", "--exclude", "*.1.mlp.*", "--option", "anneal=false"]
    assert main(arguments(place, tmp_path / "out", *more, "--polish", "none")) == 0
    masks = read_masks(tmp_path / "out/masks.safetensors")
    assert len(masks) == 6 and all(".mlp." in name for name in masks)
    assert all((mask.reshape(mask.shape[0], -1, 4).sum(-1) == 2).all() for mask in masks.values())
    record = json.loads((tmp_path / "out/relaxprune.json").read_text())
    assert record["fingerprint"]["settings"]["solver_options"]["anneal"] is False


def test_plan_solves_and_writes_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place, tmp_path / "out", "--plan")) == 0
    text = capsys.readouterr().out
    assert "model.layers.2.mlp.down_proj" in text and "GiB" in text
    assert not (tmp_path / "out").exists()


def test_plain_lines_show_error_gap_and_time_left(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(place, tmp_path / "out")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pruning: ")]
    assert len(lines) == 21
    assert all("error 0." in line and "of Wanda's, gap" in line and "left" in line for line in lines)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--pattern", "2:4", "--sparsity", "0.5"], "give either --sparsity or --pattern, got both"),
        (["--solver", "fww"], "did you mean 'fw'"),
        (["--option", "aneal=false"], "did you mean 'anneal'"),
        (["--option", "anneal"], "KEY=VALUE"),
        (["--include", "nothing"], "include pattern 'nothing' matches none"),
        (["--exclude", "nothing"], "exclude pattern 'nothing' matches none"),
        (["--pattern", "3:5"], "5"),
        (["--pattern", "two"], "pattern"),
        (["--windows", "100000"], "windows"),
        (["--length", "100000"], "too few for one window"),
        (["--revision", "main"], "revision"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    assert main(arguments(place, tmp_path / "out", *more)) == 2
    assert expected in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_loaded(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    save_tiny_llama(tmp_path / "tiny", blocks=1)
    weights = tmp_path / "tiny/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    calibration = ["--calibration", str(place / "text.txt")]
    assert main([*arguments(tmp_path, out), *calibration]) == 2
    assert "truncated" in only_sentence(capsys)
    weights.unlink()
    assert main([*arguments(tmp_path, out), *calibration]) == 2
    assert "model.safetensors" in only_sentence(capsys)
    assert main(["prune", str(tmp_path / "absent"), "--sparsity", "0.5", "--out", str(out)]) == 2
    assert "no such file or folder" in only_sentence(capsys)
    assert not out.exists()


def test_nan_weights_name_the_layer(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "tiny")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    model.save_pretrained(tmp_path / "tiny")
    AutoTokenizer.from_pretrained(place / "tiny").save_pretrained(tmp_path / "tiny")
    words = [*arguments(tmp_path, tmp_path / "out"), "--calibration", str(place / "text.txt")]
    assert main(words) == 2
    assert "model.layers.1.mlp.up_proj" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_activations_that_overflow_leave_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "tiny")
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("inf"))
    model.save_pretrained(tmp_path / "tiny")
    AutoTokenizer.from_pretrained(place / "tiny").save_pretrained(tmp_path / "tiny")
    words = [*arguments(tmp_path, tmp_path / "out"), "--calibration", str(place / "text.txt")]
    assert main(words) == 2
    assert "not finite" in only_sentence(capsys)  # in the text that the model should write
    assert main([*words, "--self-share", "0"]) == 2
    assert "batch" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_occupied_folder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(arguments(place, tmp_path)) == 2
    assert "is not empty" in only_sentence(capsys)
    assert main(arguments(place, tmp_path, "--resume")) == 2
    assert "no relaxprune run" in only_sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_out_or_amount(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", str(place / "tiny"), "--sparsity", "0.5"]) == 2
    assert "--out" in only_sentence(capsys)
    assert main(["prune", str(place / "tiny"), "--out", str(place / "never")]) == 2
    assert "got neither" in only_sentence(capsys)
