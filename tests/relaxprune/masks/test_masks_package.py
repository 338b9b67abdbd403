"""``relaxprune masks export`` and ``relaxprune apply``: the pruned model again, from its masks and the dense model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from relaxprune import RelaxPruneError, read_masks
from relaxprune.cli import main
from relaxprune.masks import apply_package, read_package
from relaxprune.masks.package import PACKAGE_NAME
from relaxprune.support.json_files import sealed

from ..command_line import arguments, only_sentence
from ..saved_models import rewrite
from ..tiny_llama import save_tiny_llama, write_text

UP = "model.layers.1.mlp.up_proj.weight"
MTP = "model.layers.3.eh_proj.weight"
RUNS: dict[str, list[str]] = {
    "proven": ["--certify", "diagonal"],
    "permuted": ["--pattern", "2:4", "--permute"],
    "wide": ["--dtype", "float32"],
    "sharded": ["--shard-size", "40KB"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model with a tensor that it does not use, a text, runs made of it, and a package of each."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny_llama(folder / "tiny", dtype=torch.bfloat16)
    rewrite(folder / "tiny", lambda tensors: tensors | {MTP: torch.randn(32, 64)})
    (folder / "tiny" / "LICENSE").write_text("MIT")
    write_text(folder / "text.txt")
    for name, more in RUNS.items():
        assert main(arguments(folder, folder / name, *more, "--quiet")) == 0
        assert main(["masks", "export", str(folder / name), str(folder / f"{name}-masks")]) == 0
    return folder


def apply(place: Path, name: str, model: Path | str, out: Path) -> int:
    shards = [word for word in RUNS.get(name, ()) if word == "--shard-size" or word.endswith("KB")]
    return main(["apply", str(place / f"{name}-masks"), str(model), "--out", str(out), *shards])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", RUNS)
def test_the_run_comes_back_byte_for_byte(place, tmp_path, capsys, name):
    assert apply(place, name, place / "tiny", tmp_path / "again") == 0
    assert "bit for bit; 13824 weights of 21 layers exactly zero" in capsys.readouterr().out
    assert contents(tmp_path / "again") == contents(place / name)
    assert main(["verify", str(tmp_path / "again")]) == 0


def test_a_package_holds_bits_and_no_weights(place, capsys):
    names = set(contents(place / "proven-masks"))
    assert {name for name in names if not name.startswith("certificates/")} == {
        "masks.safetensors", "relaxprune.json", PACKAGE_NAME, "README.md",
    }  # fmt: skip
    packed = load_file(place / "proven-masks" / "masks.safetensors")
    dense = load_file(place / "tiny" / "model.safetensors")
    assert {tensor.dtype for tensor in packed.values()} == {torch.uint8}
    assert 8 * sum(map(torch.numel, packed.values())) == sum(dense[name].numel() for name in packed)
    found = read_package(place / "proven-masks")
    assert len(found.certificates) == len(packed) == 21 and found.run.record["report"]["layers"][0]["lower_bound"] > 0
    assert f"relaxprune apply . {found.run.record['notes']['base_model']}" in (
        place / "proven-masks" / "README.md"
    ).read_text(encoding="utf-8")


def test_other_code_can_apply_a_package(place):
    """By its page alone: unpack the bits with numpy, write zeros, and compare with what the run wrote."""
    dense, run = (load_file(place / name / "model.safetensors") for name in ("tiny", "proven"))
    with safe_open(place / "proven-masks" / "masks.safetensors", framework="np") as file:
        for name, (_, cols) in json.loads(file.metadata()["shapes"]).items():
            kept = np.unpackbits(file.get_tensor(name), axis=-1, count=cols, bitorder="little").astype(bool)
            dense[name][torch.from_numpy(~kept)] = 0.0
    assert all(torch.equal(dense[name], run[name]) for name in run) and set(dense) == set(run)


def test_certificates_stay_behind_if_asked(place, tmp_path):
    assert main(["masks", "export", str(place / "proven"), str(tmp_path / "a-masks"), "--no-certificates"]) == 0
    assert apply(tmp_path, "a", place / "tiny", tmp_path / "again") == 0
    was, now = contents(place / "proven"), contents(tmp_path / "again")
    assert set(was) - set(now) == {name for name in was if name.startswith("certificates/")}
    assert "certificates" in was["README.md"].decode() and "certificates" not in now["README.md"].decode()
    assert main(["verify", str(tmp_path / "again")]) == 0


def test_a_run_that_moved_weights_is_refused(place, tmp_path, capsys):
    assert main(arguments(place, tmp_path / "run", "--refit", "--refine", "1", "--quiet")) == 0
    capsys.readouterr()
    assert main(["masks", "export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    told = only_sentence(capsys)
    assert "gave kept weights new values (--refit, --refine), so its masks alone are not its model" in told
    assert not (tmp_path / "out").exists()


def flip(tensors: dict[str, torch.Tensor], name: str, entry: int = 0) -> dict[str, torch.Tensor]:
    """Change the last bit of one entry."""
    entries = tensors[name].view(torch.int16 if tensors[name].element_size() == 2 else torch.int32)
    entries.view(-1)[entry] ^= 1
    return tensors


@pytest.mark.parametrize("name", ["proven", "wide"])
@pytest.mark.parametrize("kept", [False, True])
def test_another_model_is_refused_by_its_hash(place, tmp_path, capsys, name, kept):
    """Also where the masks would remove the difference: the hash is of the whole model."""
    entry = int((read_masks(place / name)[UP].flatten() == kept).nonzero()[0])
    shutil.copytree(place / "tiny", tmp_path / "tiny")
    rewrite(tmp_path / "tiny", lambda tensors: flip(tensors, UP, entry))
    capsys.readouterr()
    assert apply(place, name, tmp_path / "tiny", tmp_path / "out") == 2
    assert "is not the one that the masks of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_model_does_not_use_counts_too(place, tmp_path, capsys):
    shutil.copytree(place / "tiny", tmp_path / "tiny")
    rewrite(tmp_path / "tiny", lambda tensors: flip(tensors, MTP))
    capsys.readouterr()
    assert apply(place, "proven", tmp_path / "tiny", tmp_path / "out") == 2
    assert "tensors that the model does not use are not those of SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def spoil_masks(folder: Path) -> None:
    data = bytearray((folder / "masks.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "masks.safetensors").write_bytes(data)


def edit(folder: Path, seal: bool, **changes) -> None:
    content = json.loads((folder / PACKAGE_NAME).read_text()) | changes
    (folder / PACKAGE_NAME).write_text(json.dumps(sealed(content) if seal else content))


DAMAGE = {
    "masks": (spoil_masks, "is missing or is not the file"),
    "a file that is gone": (lambda folder: (folder / "relaxprune.json").unlink(), "is missing or is not the file"),
    "hashes": (lambda folder: edit(folder, False, pruned={"weights_sha256": "", "unused_sha256": ""}), "checksum"),
    "hashes, sealed again": (
        lambda folder: edit(folder, True, pruned={"weights_sha256": "0", "unused_sha256": ""}),
        "is not the model that the run wrote: its weights are not those of SHA-256 0",
    ),
    "no masks": (lambda folder: edit(folder, True, files={}), "it lists no masks.safetensors"),
    "a path outside": (
        lambda folder: edit(folder, True, files={"../tiny/LICENSE": {"bytes": 3, "sha256": "0"}}), "is missing",
    ),
    "a later version": (lambda folder: edit(folder, True, schema_version=2), "has schema version 2"),
    "a run's folder": (lambda folder: (folder / PACKAGE_NAME).unlink(), "is no mask package"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_package_is_refused(place, tmp_path, capsys, what):
    shutil.copytree(place / "proven-masks", tmp_path / "a-masks")
    damage, words = DAMAGE[what]
    damage(tmp_path / "a-masks")
    capsys.readouterr()
    assert apply(tmp_path, "a", place / "tiny", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_run_and_what_is_no_run_are_not_exported(place, tmp_path, capsys):
    run = shutil.copytree(place / "proven", tmp_path / "run")
    rewrite(run, lambda tensors: flip(tensors, UP))
    capsys.readouterr()
    for source, words in (
        (run, "is not the file that the finished run wrote"),
        (place / "tiny", "is not a run's folder"),
        (run / "masks.safetensors", "is a file: give the run's folder"),
    ):
        assert main(["masks", "export", str(source), str(tmp_path / "out")]) == 2
        assert words in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_a_hub_model_is_read_at_the_commit_that_was_pruned(place, tmp_path, monkeypatch):
    commits = {"a" * 40: place / "tiny", "b" * 40: tmp_path / "newer"}
    shutil.copytree(place / "tiny", tmp_path / "newer")
    rewrite(tmp_path / "newer", lambda tensors: flip(tensors, UP))

    def snapshot_download(_name, *, revision, **_keywords):
        commit = revision or "b" * 40  # the branch has moved
        folder = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / commit
        shutil.copytree(commits[commit], folder, dirs_exist_ok=True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    words = arguments(place, tmp_path / "run", "--quiet", "--revision", "a" * 40)
    assert main([*words[:1], "owner/tiny", *words[2:]]) == 0
    assert main(["masks", "export", str(tmp_path / "run"), str(tmp_path / "goods")]) == 0
    apply_package(tmp_path / "goods", "owner/tiny", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "run")
    with pytest.raises(RelaxPruneError, match=rf"\(commit {'a' * 40}\) had"):
        apply_package(tmp_path / "goods", str(tmp_path / "newer"), tmp_path / "other")
