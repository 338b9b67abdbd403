"""``relaxprune verify RUN``: a finished run against its source, and every kind of difference between them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from relaxprune.cli import main
from relaxprune.models.checkpoint import SINGLE_FILE
from relaxprune.runs.mask_file import read_mask_file, write_masks
from relaxprune.runs.run_record import RECORD_NAME, list_files
from relaxprune.runs.verification import verify_run
from relaxprune.support.json_files import sealed

from ..command_line import arguments, only_sentence
from ..saved_models import rewrite
from ..tiny_llama import save_tiny_llama, write_text

UP = "model.layers.1.mlp.up_proj.weight"
MTP = "model.layers.3.eh_proj.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with a tensor that its model does not use and a licence, a text, and runs made of it."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny_llama(folder / "tiny", dtype=torch.bfloat16)
    rewrite(folder / "tiny", lambda tensors: tensors | {MTP: torch.randn(32, 64)})
    (folder / "tiny" / "LICENSE").write_text("MIT")
    write_text(folder / "text.txt")
    for name, more in RUNS.items():
        assert main(arguments(folder, folder / name, *more)) == 0
    return folder


RUNS: dict[str, list[str]] = {
    "plain": [],
    "permuted": ["--pattern", "2:4", "--permute"],
    "refitted": ["--refit"],
    "shared": ["--allocation", "owl"],
    "layerwise": ["--allocation", "layer"],
    "wide": ["--dtype", "float32"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_as_it_was_made(place, name, capsys):
    assert main(["verify", str(place / name)]) == 0
    said = capsys.readouterr()
    assert not said.err.replace("tensors that the model does not use", "").count("relaxprune:")
    assert "21 of them masked as asked" in said.out


def test_the_source_elsewhere(place, tmp_path, capsys):
    shutil.copytree(place / "tiny", tmp_path / "moved")
    run = shutil.copytree(place / "plain", tmp_path / "run")
    record = json.loads((run / RECORD_NAME).read_text())
    record["fingerprint"]["model"]["source"] = str(tmp_path / "gone")
    (run / RECORD_NAME).write_text(json.dumps(sealed(record)))
    assert main(["verify", str(run)]) == 2
    assert "give it as --source" in only_sentence(capsys)
    assert main(["verify", str(run), "--source", str(tmp_path / "moved")]) == 0


def test_what_is_no_run_and_options_that_make_no_sense(place, capsys):
    for words, expected in (
        (["verify", str(place / "tiny")], "is not a run's folder"),
        (["verify", str(place / "nowhere")], "does not exist"),
        (["verify", str(place / "plain"), "--exact"], "there is no certificate"),
        (["verify", "problem", "certificate", "--source", "tiny"], "for a run folder"),
    ):
        assert main(words) == 2
        assert expected in only_sentence(capsys)


def forge(run: Path) -> None:
    """Have the record list the files as they are now: what a careful liar would do."""
    record = json.loads((run / RECORD_NAME).read_text())
    record["files"] = list_files(run, [path.name for path in run.iterdir() if path.name != RECORD_NAME])
    (run / RECORD_NAME).write_text(json.dumps(sealed(record)))


def test_a_number_of_the_record(place, tmp_path, capsys):
    run = shutil.copytree(place / "plain", tmp_path / "run")
    record = json.loads((run / RECORD_NAME).read_text())
    record["report"]["layers"][0]["objective"] /= 2
    (run / RECORD_NAME).write_text(json.dumps(record))
    assert main(["verify", str(run)]) == 3
    assert "'relaxprune.json' was changed: its checksum does not match" in only_sentence(capsys)
    assert main(["report", str(run)]) == 0
    notices = json.loads((run / "report.json").read_text())["repeat"]["notices"]
    assert notices == ["relaxprune.json was changed after the run: its checksum does not match its content"]


@pytest.mark.parametrize("name", ["refitted", "wide"])
def test_a_source_that_lost_what_the_result_does_not_hold(place, tmp_path, capsys, name):
    masks = read_mask_file(place / name)[0]
    shutil.copytree(place / "tiny", tmp_path / "tiny")
    rewrite(tmp_path / "tiny", lambda tensors: tensors | {UP: tensors[UP] + (~masks[UP]).to(tensors[UP].dtype)})
    assert main(["verify", str(place / name), "--source", str(tmp_path / "tiny")]) == 3
    assert "the source's weights are not those of SHA-256" in only_sentence(capsys)


def edit(run: Path, name: str, change) -> None:
    tensors = load_file(run / SINGLE_FILE)
    tensors[name] = change(tensors[name])
    save_file(
        {key: tensor for key, tensor in tensors.items() if tensor is not None}, run / SINGLE_FILE, {"format": "pt"}
    )


def flipped(tensor: torch.Tensor, entry: int) -> torch.Tensor:
    """Change the last bit of one entry."""
    bits = tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32).clone()
    bits.view(-1)[entry] ^= 1
    return bits.view(tensor.dtype)


def edit_masks(run: Path, change) -> None:
    masks, extra = read_mask_file(run)
    change(masks)
    write_masks(run / "masks.safetensors", masks, extra)


def swap(masks):
    """Move one kept entry of a row within its row: the count is right, the weight is not."""
    mask = masks[UP]
    kept, pruned = int(mask[0].nonzero()[0]), int((~mask[0]).nonzero()[0])
    mask[0, kept], mask[0, pruned] = False, True


def uneven(masks):
    """Move a kept entry from one row to another."""
    mask = masks[UP]
    mask[0, int(mask[0].nonzero()[0])] = False
    mask[1, int((~mask[1]).nonzero()[0])] = True


def fuller(masks):
    masks[UP][:] = True


def zero_at(run: Path) -> int:
    """The place of a pruned weight."""
    return int((~read_mask_file(run)[0][UP]).flatten().nonzero()[3])


def kept_at(run: Path) -> int:
    return int(read_mask_file(run)[0][UP].flatten().nonzero()[3])


LIES = {
    "a kept weight": (lambda run: edit(run, UP, lambda t: flipped(t, kept_at(run))), f"1 weights of '{UP}'"),
    "a pruned weight": (lambda run: edit(run, UP, lambda t: flipped(t, zero_at(run))), f"1 weights of '{UP}'"),
    "a norm": (lambda run: edit(run, "model.norm.weight", lambda t: flipped(t, 0)), "'model.norm.weight' is not"),
    "an embedding": (
        lambda run: edit(run, "model.embed_tokens.weight", lambda t: flipped(t, 9)), "'model.embed_tokens.weight' is"
    ),
    "an unused tensor": (lambda run: edit(run, MTP, lambda t: flipped(t, 5)), f"'{MTP}', which the model does not use"),
    "an unused tensor gone": (lambda run: edit(run, MTP, lambda t: None), f"'{MTP}', which the model does not use"),
    "a licence": (lambda run: (run / "LICENSE").write_text("all rights reserved"), "file 'LICENSE' is missing or"),
    "a licence gone": (lambda run: (run / "LICENSE").unlink(), "file 'LICENSE' is missing or"),
    "another entry kept": (lambda run: edit_masks(run, swap), f"2 weights of '{UP}'"),
    "uneven rows": (lambda run: edit_masks(run, uneven), f"the mask of '{UP}' is not in the set"),
    "a mask of nothing": (lambda run: edit_masks(run, fuller), f"the mask of '{UP}' keeps 2048 of 2048"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_difference_is_told_though_the_record_was_made_to_fit(place, tmp_path, lie, capsys):
    run = shutil.copytree(place / "plain", tmp_path / "run")
    change, expected = LIES[lie]
    change(run)
    assert main(["verify", str(run)]) == 3
    assert "file '" in capsys.readouterr().err  # the files are not those of the record
    forge(run)
    assert main(["verify", str(run)]) == 3
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in sentence or expected in str(verify_run(run).differences)


def test_new_weights_must_be_zero_where_they_are_pruned_and_finite_where_not(place, tmp_path):
    run = shutil.copytree(place / "refitted", tmp_path / "run")
    edit(run, UP, lambda t: flipped(t, kept_at(run)))  # nobody knows what they should be
    forge(run)
    assert not verify_run(run).differences
    edit(run, UP, lambda t: flipped(t, zero_at(run)))
    forge(run)
    assert verify_run(run).differences == (f"1 weights of '{UP}' are not what its mask makes of the source's",)


def test_files_that_came_later_are_known_and_others_are_told(place, tmp_path):
    run = shutil.copytree(place / "plain", tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert not verify_run(run).differences
    (run / "evil.py").write_text("import os")
    (run / "sub").mkdir()
    (run / "sub" / "more.txt").write_text("x")
    found = verify_run(run)
    assert found.differences == ("file 'evil.py' is none of the run's", "file 'sub/more.txt' is none of the run's")
    assert str(found).endswith("; 1 more difference")
